"""The texts of the demo data: what customers write, and the parts that answers are made of.

Each situation starts with ``= slug | group | thing | topic``: the answers to situations of one group are never used
as wrong answers for each other, and ``thing`` and ``topic`` are the words for it inside a sentence. The lines after
it hold, by their first mark:

    ?  a prompt; after `` ~ `` the parts that do not suit it, counted from 1 (``N2`` is the second next step)
    A  an acknowledgement    N  a next step    Q  a question for the one thing needed
    B  blames the customer   C  is curt        P  promises the impossible   D  waves the matter away

``TRAIN`` and ``EVAL`` share no situation.
"""

TRAIN = """
= late-parcel | parcels | parcel | a late parcel
? My order is late.
? It was meant to come on Tuesday and it's now Friday.
? where is my parcel???
? Hello, could you tell me when my package will get here, please? ~ A2 A3 N2
? The tracking page hasn't changed in five days.
? Still no delivery. I took two days off work for this.
? I ordered a birthday present and the party is tomorrow, but nothing has shown up yet.
? Any news on my delivery?
A I'm sorry the parcel isn't with you yet.
A Waiting days for a parcel is no fun, and I apologise.
A You should have had this delivery by now.
N I'll ask the carrier where the parcel is and write to you by six this evening.
N I'm opening a trace on the parcel right away.
N If the parcel can't be found by tomorrow, I'll post a replacement or refund you.
N I can see where the parcel was last scanned and will ring that depot for you.
Q Could you send me the order number?
Q What is the tracking number on your confirmation email?
Q Which postcode was the parcel going to?
B You must have typed in the wrong address, so the delay is your own doing.
B You should have ordered earlier if you needed the parcel so badly.
C Track it online.
C Wait a few more days.
P Your parcel will be at your door in the next five minutes, and that is guaranteed forever.
P I will drive the parcel to you myself tonight and give you a thousand dollars on top.
D Parcels are late sometimes. There is nothing to be done about it.
D It will come when it comes.

= broken-parcel | parcels | broken item | an item broken in the post
? The vase arrived in pieces.
? I opened the box and everything inside was smashed. ~ N1
? Your courier clearly threw my parcel around, the glass is broken! ~ N1
? Hi, my order came today but one of the bowls has a big crack. ~ N1
? broken on arrival, what now ~ N1
? What should I do with an item that was damaged in the post? ~ N1
? This is the second time a vase from you turns up shattered. Do you even use bubble wrap?
? The packaging was torn and the vase is chipped at the top.
A I'm so sorry your order arrived broken.
A That's a sad thing to find when you open the box.
A Thank you for telling us about the breakage straight away.
N A new vase can leave today, packed in a double box.
N You can choose a replacement or your money back for the broken piece.
N There's no need to return the broken pieces, so please throw them away safely.
N I'm reporting the damage to the courier, so the broken parcel won't cost you anything.
Q Could you send a photo of the damage?
Q May I have the order number, please?
Q Would you like a replacement or a refund?
B You probably dropped it yourself when you opened the box.
B People who order glass by post have to expect that. You should know better.
C Glue it.
C See our returns page.
P I'll send you fifty new vases by tonight and none of them can ever break.
P We promise that nothing you own will ever be damaged again, or we pay a million.
D Things break. We don't deal with damage.
D A chip is hardly worth writing to us about.

= wrong-size-shoes | clothing | shoes | shoes in the wrong size
? I ordered size 42 and you sent me 39. ~ Q1 Q3
? These shoes don't fit at all.
? Wrong size in the box. Again. ~ Q1
? Can I swap my trainers for a bigger pair?
? Hello, the boots are lovely but far too small for me. Is an exchange possible?
? How on earth do you mix up a 5 and an 8? ~ Q1 Q3
? The label says size 7, the shoes inside are a 6, and I need them for a wedding on Saturday. ~ Q1 Q3
? need a different size please
A I'm sorry the shoes don't fit.
A A pair in the wrong size is no use to you, so let's put that right.
A Thanks for letting us know about the size.
N I'll reserve the right size now and send the shoes out this afternoon.
N A prepaid label for sending the shoes back is on its way to your inbox.
N The exchange is free, and the courier can collect the old pair when the new shoes arrive.
N I'm checking our stock for your size and will hold a pair of shoes for you.
Q Which size would you like instead?
Q Could you give me the order number?
Q What size is printed inside the shoes you received?
B You should measure your feet before you order anything.
B It's not our fault that your feet are an odd size.
C Read the size chart.
C Wear thicker socks.
P We will make shoes by hand that grow with your feet for the rest of your life, at no charge.
P Every shoe in our shop is now yours for free, whatever the size.
D Sizes vary. We can't help with that.
D Most people just keep them.

= card-declined | banking | card | a declined card
? My card was declined at the supermarket. ~ Q2 Q3
? Why does my debit card keep getting refused?
? I have plenty of money in the account but the card doesn't work. ~ Q2
? So embarrassing, I couldn't pay for dinner because your bank blocked me! ~ Q2
? card not working since this morning
? Good afternoon, my card was turned down twice today and I don't know the reason. Could you check?
? I'm abroad and every shop refuses my card. ~ Q2 Q3
? Payment refused online, is something wrong with my account? ~ Q2
A I'm sorry your card was refused, that's an awkward moment.
A I understand how unpleasant a declined card is.
A Let's find out why the card was turned down.
N I'll look for a security block on the card and lift it while we chat.
N I can see the refused payments once you're verified and will explain each one.
N If the card is faulty, I'll order a new one that reaches you in three working days.
N Our fraud team checks blocked cards around the clock, and I'm passing your case to them now.
Q Could you tell me the last four digits of the card?
Q In which shop did the payment fail?
Q Are you at home or travelling at the moment?
B You must have spent all your money without noticing.
B You typed the wrong PIN, obviously. Please be more careful.
C Use cash.
C Try again later.
P Your card will never be refused again anywhere in the universe, I swear.
P I have raised your limit to ten million and you don't have to pay any of it back.
D Cards get declined every day. We can't look into each case.
D That is between you and the shop.

= lost-card | banking | bank card | a lost bank card
? I lost my bank card.
? Someone stole my wallet and my credit card was in it!
? I can't find my card anywhere, what should I do?
? Please block my card, I left it on the bus.
? my card is gone, help
? I think I dropped my debit card at the market an hour ago and I'm worried someone will use it.
? How do I get a new card after losing mine? ~ A3
? There are payments on my stolen card that I didn't make.
A I'm sorry about your card, and you did well to write at once.
A Losing a bank card is stressful, so let's make it safe first.
A Thank you for reporting the missing card so quickly.
N I'm blocking the card right now so that nobody can use it.
N A new card will be sent to your home address and should arrive within five days.
N I'll go through the latest card payments with you and dispute any that aren't yours.
N You can also freeze the card in the app under Cards while I order a new one.
Q Could you confirm your full name and date of birth?
Q When did you last use the card?
Q Is your home address still the same?
B You should take better care of your things.
B Who leaves a wallet lying around? That was careless of you.
C Call the hotline.
C Look under the sofa.
P I promise that the thief will be in prison within the hour and you'll get double your money.
P We will find your card wherever it is in the world before lunch.
D Lost cards are not our concern.
D Just wait, maybe it turns up.

= charged-twice | banking | payment | a double charge
? I was charged twice for the same thing.
? You took the money two times!
? There are two payments of 49.90 on my statement but I only bought one lamp.
? Could you please check a duplicate charge on my account?
? double charge, please fix
? Why did you bill me twice this month? My account is overdrawn because of you.
? I pressed pay once and got two receipts.
? One order, two payments. How do I get the second one back?
A I'm sorry you were charged twice.
A Two charges for one order is clearly wrong.
A I can see why a double charge would worry you.
N I'll refund the second payment today, and the bank should show it within three to five days.
N I'm comparing both charges now and will cancel the extra one.
N If the duplicate charge caused an overdraft fee, we'll pay that back as well.
N Our payments team will reverse the duplicate charge, and I'll email you proof of it.
Q What are the dates of the two payments?
Q Could you send me the order number?
Q Which email address did you use for the purchase?
B You clicked the button twice, so that's your mistake.
B If you read your statement properly, you'd see that it is right.
C Ask your bank.
C It sorts itself out.
P I'll refund both payments ten times over in the next second, cross my heart.
P From today everything you buy with us is free for life.
D We don't handle billing questions.
D It is only a small sum, so let it go.

= refund-missing | refunds | refund | a refund that has not arrived
? Where's my refund for the lamp?
? I sent the jacket back three weeks ago and still have no money.
? You promised my refund within 5 days. That was a month ago!
? Hi there, could you check the status of a refund for me?
? no refund yet, please check
? The email said I'd been refunded but nothing has reached my account. ~ N1
? How long does it take until I get my money back for a return? ~ A1 A2
? I returned the toaster in May, have the receipt from the post office, and nobody answers my emails.
A I'm sorry the refund is taking this long.
A Your money should be back with you by now.
A Thank you for your patience while waiting for the refund.
N I'll check whether the return was booked in and release the refund today.
N I'm asking our accounts team to confirm the date the refund was sent.
N The bank needs up to five days, so if the refund isn't there by Monday I'll send it again.
N I'll email you the payment reference of the refund, so that your bank can trace it.
Q Could you tell me the order number of the item you returned?
Q Do you have the return receipt number?
Q Which card or account should the refund go to?
B You surely sent it back too late or to the wrong place.
B You didn't read the refund terms, did you?
C Check your account.
C Refunds take time.
P You'll get your money in ten seconds, plus a new car as an apology.
P I guarantee a refund on everything you have bought in your whole life.
D Refunds are not something I can look at.
D Somebody will perhaps deal with it at some point.

= hotel-overbooked | hotels | room | an overbooked hotel
? The hotel says they have no room for us although we booked.
? I'm at the reception and they can't find my reservation!
? We arrived at midnight and our room was given to someone else.
? Your partner hotel is overbooked. What happens now?
? no room for us, standing in the lobby with two kids
? I have a confirmation for two nights but the hotel claims it never got it.
? Could you please help? The hotel turned us away tonight.
? Unbelievable, I paid in advance and the room is gone.
A I'm very sorry you were turned away after your journey.
A That's a dreadful welcome, and I want to get you a bed for tonight.
A You booked a room and should have one.
N I'm calling the hotel now and will look for a room of the same standard nearby.
N We'll pay any difference in price for another room and the taxi to get there.
N Please stay in the lobby, and I'll ring you within fifteen minutes with a room.
N If you'd rather go home, I'll refund the whole hotel booking today.
Q What's your booking reference?
Q Which phone number can I reach you on?
Q How many people need a bed tonight?
B You should have arrived earlier if you wanted the room.
B You must have booked the wrong dates.
C Find another hotel.
C Talk to reception.
P I'll buy the hotel and throw everybody else out for you.
P You'll stay free of charge in the royal suite of any hotel for the rest of your life.
D Hotels overbook. That's how it goes.
D This is between you and the hotel, so don't write to us.

= noisy-room | hotels | hotel room | a noisy hotel room
? Our room is right above a disco. ~ A2 N2
? I can't sleep, the people next door are having a party! ~ A2
? The air conditioning rattles all night long. ~ N2
? Could we move to a quieter room, please? ~ A2
? too loud in here ~ A2
? I paid for a sea view and got a noisy street instead, I'm really disappointed. ~ A2 N2
? There's building work outside the window since six in the morning. Nobody told us about that. ~ N2
? Is there any other room free? Ours is next to the lift and very noisy. ~ A2 N2
A I'm sorry you can't get any rest in your room.
A After a night like that I'd be tired and cross too.
A Thank you for speaking up about the noise.
N I'll check for a free room on the quiet side and have your bags moved.
N Our night manager will come up in a few minutes to stop the noise near your room.
N If no quiet room is free tonight, I'll take this night off your bill.
N I'm putting you down for the first quiet room that is free tomorrow morning.
Q What's your room number?
Q Would a room on a higher floor suit you?
Q When would it suit you to change sized_rows?
B You picked the cheapest room, so what did you expect?
B Maybe you are just too sensitive to noise.
C Use earplugs.
C It's a city.
P I will silence the whole town tonight, you have my word on that.
P You'll get a private island with no sound at all by tomorrow, free of charge.
D Noise is not something we deal with.
D Other guests sleep just fine.

= high-phone-bill | telecoms | phone bill | a phone bill that is too high
? My phone bill is three times what it should be. ~ N3
? Why was I charged 80 euros extra this month? ~ N3
? What is this "premium service" on my bill? I never ordered it! ~ Q2
? Hello, I don't understand the last item on my mobile bill. ~ A2 N3 Q2
? bill way too high ~ N3
? You said roaming was included, and now I'm asked to pay for data in Spain. ~ N3 Q2
? Can someone explain my invoice to me, please? ~ A2 N3
? I've had the same contract for six years and suddenly the bill doubles without a word from you. ~ N3
A I'm sorry about the surprise on your phone bill.
A A bill like that would startle anyone.
A Let's go through the phone bill together.
N I'll list every charge on the bill and take off any you didn't agree to.
N I'm pausing the payment of this bill until we know what the extra charge is.
N I can block premium services on your number today, so the next bill won't include them.
N Our billing team will check the bill and send you a corrected one by Thursday.
Q Could you tell me your customer number?
Q Which charge on the bill looks wrong to you?
Q Which mobile number is the bill for?
B You obviously used your phone too much.
B You signed the contract, so it's your fault for not reading it.
C Read the contract.
C Pay the bill.
P I'll cancel every phone bill you have had since you were born.
P Your bill will be zero forever, and we'll pay you for each call you make.
D Bills are what they are.
D We can't explain invoices to customers.

= no-signal | telecoms | mobile signal | a phone without signal
? My phone has had no signal since yesterday.
? I can't make any calls from home.
? No bars, no data, nothing. I'm paying for this?
? Is there a network problem in my area? ~ A1 A2
? The mobile internet is so slow that I can't even open a map. ~ A1 A2 N4
? Hi, after putting in the new SIM my phone only says "no service". ~ N1 N3
? calls keep dropping every two minutes ~ A1 A2 N4
? I work from home and have missed four calls from clients today because your network is down again.
A I'm sorry you're cut off from the network.
A Being without a mobile signal is a real nuisance.
A Thanks for reporting the signal problem.
N I'll check the masts near you for faults and text you what I find.
N I'm resetting your SIM on the network, so please turn the phone off for two minutes.
N If the signal isn't back tonight, an engineer will look at the mast tomorrow.
N I'll credit your account for each day without a signal.
Q What's your postcode?
Q Which phone are you using?
Q Does the SIM work in another phone?
B You have probably switched on flight mode without thinking.
B It's your fault for living in the countryside.
C Restart it.
C Move to a window.
P I'll build a private mast in your garden within the hour.
P Your signal will be perfect on every mountain and under the sea from this moment on.
D The network is fine from here.
D Nobody else has complained, so there's no problem.

= account-locked | software | account | a locked account
? I can't log in to my account. ~ N4 Q3
? It says my password is wrong, but it isn't! ~ N4 Q2 Q3
? The reset email never arrives. ~ N4 Q2
? Please unlock my account, I have a deadline today. ~ N4 Q3
? locked out of my account again ~ N4 Q3
? How can I get back into my account if I no longer have the old phone number? ~ N2 N3 Q2 Q3
? I tried three times and now it says my account is blocked for 24 hours. ~ N3 N4 Q2 Q3
? Good morning, I've forgotten my password and the link you sent has expired. Could you help me? ~ N4 Q2
A I'm sorry you're locked out.
A Not getting into your own account is maddening.
A Let's get you back into your account.
N I'll send a new reset link for your account, and it stays valid for an hour.
N I'm lifting the lock on the account, so please try again in ten minutes.
N If the mail doesn't show up, I can send a login code by text instead.
N Once I've checked that the account is yours, I'll replace the old phone number.
Q Which email address do you log in with?
Q What does the error message say exactly?
Q Could you check your spam folder for our reset mail?
B You should have written your password down.
B You keep typing it wrong, so of course your account is blocked.
C Reset your password.
C See the help page.
P I will give you the master password to all accounts in the world.
P You'll never need a password again in your life, I promise you that.
D Locked accounts stay locked.
D Just make a new account and stop worrying.

= app-crashes | software | app | an app that crashes
? The app crashes every time I open it. ~ A2 N3
? Since the last update nothing works anymore. ~ A2 N3
? your app is garbage, it freezes on the first screen ~ A2 N3
? Could you tell me why the app closes by itself on my tablet? ~ A2 N3
? It hangs at the loading screen and then shuts down. ~ A2 N3
? I was about to hand in my tax form when your app crashed and everything I typed was gone!
? Is there a known problem with version 4.2? ~ A1 A2 N3 Q1
? App won't start on my new phone. ~ A2 N3 Q2
A I'm sorry the app keeps crashing on you.
A A crash in the middle of your work is awful.
A Thank you for reporting the crash.
N I'll pass the crash to our developers and tell you when the fix is out.
N Please update the app to the newest version, as it fixes a crash at start.
N I can see if your draft was saved on our server and restore it in the app.
N A fix for the app is being tested, and I'll write to you once it's released.
Q Which phone and app version are you using?
Q What were you doing just before the crash?
Q Could you send me a screenshot of the error?
B Your phone is old, so that's your own problem.
B You must have installed something silly on your phone.
C Reinstall it.
C Buy a new phone.
P The app will never have a single bug again from this second until the end of time.
P I'll have every developer in the country fly to your house tonight to fix it.
D Apps crash. We have other things to do.
D It works for me.

= photos-lost | software | photos | lost photos
? Your app lost all my photos.
? My pictures are gone after the update!
? I can't find my holiday album anywhere in the cloud.
? All the photos of my daughter's first year have disappeared. Please tell me you can get them back.
? Where did my backup go? ~ A2
? photos missing, album is empty
? I paid for extra storage and half of my pictures aren't there. ~ A2
? Is it possible to restore pictures that were deleted by accident? ~ A2 N3
A I'm so sorry, I know how much those photos mean to you.
A Seeing an empty album must have been a shock.
A Let's look for your photos together.
N I'll search our backups for your photos and write to you before tonight.
N Deleted photos stay in the bin for thirty days, and I can restore them from there.
N I'm stopping the sync on your account so that no more photos can be overwritten.
N Our storage team will try to restore the album, and I'll keep you posted.
Q Which email address is your album under?
Q When did you last see the photos?
Q Did you change phones recently?
B You deleted the photos yourself and now you blame us.
B Anyone sensible keeps three backups, so that's your own fault.
C Check the bin.
C They're gone.
P I'll bring back each picture ever taken by anyone, in better quality, in one minute.
P We guarantee that you will never lose anything again in your life, not even your keys.
D They are only pictures. Take new ones.
D We don't restore photos.

= table-booking-lost | restaurants | table | a lost table booking
? We had a table for six and nobody knew about it. ~ A3 N2 N4 Q3
? You gave our table away! ~ A3 N2 N4 Q3
? I booked online for tonight but got no confirmation. ~ A1 A2 N3 Q2
? Could you check if my reservation for Saturday went through? ~ A1 A2 N1 N3 Q2
? no table despite booking, ruined our anniversary ~ A3 N2 N4 Q3
? The waiter told us that our name wasn't on the list, so we stood there for an hour. ~ A3 N2 N4 Q3
? Is my table for two at eight still reserved? ~ A1 A2 N1 N3 Q2 Q3
? I called last week to book a table and it isn't in your system. ~ A2 N3
A I'm sorry your table booking went wrong.
A You made plans for the evening, and we let you down.
A Thanks for checking with us about your table.
N I'll look through the booking list now and find out what happened to your table.
N I can hold a table by the window for you and send a confirmation by text.
N Our manager will call you today to offer another evening with drinks on us.
N If the slot is full, I'll find you a table within half an hour of it.
Q Under which name did you book?
Q What day and time did you choose?
Q How many people will be at the table?
B You must have gone to the wrong restaurant.
B You should have called again to make sure.
C Come earlier.
C We're full.
P I'll close the whole restaurant for you every night for the next ten years.
P The best chef in the world will cook at your home tonight, for free.
D Bookings get lost. It isn't a big deal.
D Eat somewhere else then.

= cold-takeaway | restaurants | meal | food that arrived cold
? My food arrived cold.
? The pizza took two hours and was like cardboard! ~ Q2
? We waited 90 minutes for cold noodles. ~ Q2
? Hi, the curry I ordered tonight was stone cold. Could I have my money back? ~ Q1 Q2
? cold food again, not happy
? The driver went somewhere else first, so our dinner was cold when it came.
? What do you do when a meal is delivered cold? ~ N3
? Soup cold, fries soggy, kids hungry. Thanks a lot. ~ Q2
A I'm sorry dinner turned up cold.
A Nobody wants to wait that long for a cold meal.
A Thank you for being honest about the food.
N I can refund the meal, and you'd see the money in two days.
N I can have the same meal cooked fresh and sent to you right now.
N I'm raising this with the restaurant so that your next meal comes hot.
N You'll get a credit for the cold dishes on your account tonight.
Q Would you like a fresh meal or a refund?
Q Which of the dishes were cold?
Q Could you give me the order number from the app?
B You should have opened the door faster.
B If you live so far away, cold food is your own choice.
C Use the microwave.
C Food cools down.
P I will send you hot food every hour for the rest of your life, for free.
P Your next meal will arrive in four seconds and cure all illnesses.
D Cold food is still food.
D We can't do anything about temperatures.

= missing-takeaway-item | restaurants | food order | a missing dish
? You forgot my dessert. ~ Q1
? The drinks were missing from our order. ~ N1 N2 Q1 Q3
? I paid for three burgers and only got two! ~ Q1
? Hello, my bag came without the garlic bread. What can we do? ~ Q1
? half of the order is missing
? Why is it that every time I order here, something isn't in the bag? ~ Q1
? There was no rice with the curry, although it's on the receipt.
? Our son's meal never came, so he's sitting here crying while the rest of us eat. ~ Q1
A I'm sorry part of your food was left out.
A Opening the bag and missing a dish is so annoying.
A Thanks for letting us know what was missing.
N The kitchen can make the missing dish and send it out right away.
N I can refund the missing dish, which you'd see on your card by Friday.
N I'll note the missing food for a refund and ask the restaurant to check each bag twice.
N You can choose between a new delivery of the missing food and your money back.
Q Which dish was missing from the bag?
Q What is the number on your receipt?
Q Should we still send the missing dish tonight?
B You probably ate it and forgot.
B You should have counted before the driver left.
C Order again.
C Ask the driver.
P We'll send a truck full of desserts to you every morning until you are a hundred.
P I promise that no bag on earth will ever miss a dish again.
D One dish more or less doesn't matter.
D We can't know what was in the bag.

= flight-cancelled | airlines | flight | a cancelled flight
? My flight was cancelled.
? You cancelled my flight and nobody at the airport can help!
? I just got a text that tomorrow's flight to Rome isn't going. ~ N3
? Could you rebook me on another flight today, please? ~ Q2
? flight cancelled, stuck in Lisbon
? Do I get my money back if you cancel the flight? ~ A1 A2 N3 N4
? We're a family of four with a baby, our flight was cancelled and the next one is in two days. ~ Q3
? I have to be at my sister's wedding tomorrow at noon. How will you get me there? ~ N3 Q2
A I'm sorry your flight was cancelled.
A That leaves you in a hard spot, so let's find a way.
A I know a cancelled flight throws all your plans over.
N I'll search for seats on the next flight, including other airlines, at no cost to you.
N You can choose between a new flight and a full refund of your ticket.
N If you have to stay the night, we'll pay for a hotel near the airport.
N I'm putting you on the waiting list for the next flight and will text you the result.
Q What's your booking code?
Q Do you need to travel today, or would tomorrow do?
Q How many people are travelling with you?
B You should have picked a better day to fly.
B You ought to have bought a flexible ticket, so it's your own fault.
C Check the board.
C Take the bus.
P A private jet with your name on it will pick you up in three minutes.
P I guarantee that none of your flights will ever be late again in this life.
D Flights get cancelled. We don't make the weather.
D Please stop asking about it.

= lost-suitcase | airlines | suitcase | a lost suitcase
? My suitcase didn't arrive.
? I'm in Athens and my luggage is in Oslo!
? We waited two hours at the belt and our bags never came.
? Could you find out where my bag is, please?
? lost luggage, nobody answers the phone
? It's been four days without my clothes and medicine. When do I get my suitcase back?
? What do I do if my bag isn't on the belt?
? The blue suitcase came, but the red one with the baby things is missing. ~ Q2
A I'm sorry your suitcase didn't make it.
A Being far from home without your bags is hard.
A Let's track down your suitcase.
N I'll start a search for the suitcase at both airports and text you twice a day.
N Once it's found, a courier will bring the suitcase to your hotel for free.
N You can buy what you need for now, and we'll pay you back, so please keep the receipts.
N I can see the last scan of the bag and am asking that airport to put it on the next flight.
Q What's the number on your baggage tag?
Q What does the suitcase look like?
Q At which address can we deliver the bag?
B You should have taken only hand luggage.
B You probably forgot to put a label on it.
C Fill in the form.
C Buy new clothes.
P I'll replace your suitcase with ten golden ones within the hour.
P Your bag will be in your hands before you finish reading this, guaranteed.
D Bags go missing. We can't look for each one.
D It's only a suitcase.

= cancel-streaming | subscriptions | subscription | cancelling a subscription
? How do I cancel my subscription? ~ N4
? I want to stop my streaming plan. ~ A2 N4
? There's no cancel button anywhere on your site! ~ N4
? Please end my membership at the end of the month. ~ A2 N4
? cancel my plan now ~ A2 N4
? I've tried to cancel three times and you still take the money. What do I have to do? ~ N3
? Could you tell me how to end the free trial before it costs anything? ~ A2 N4
? We never watch it, so I'd like to cancel. ~ A2 N4
A I'm sorry to see you go, and I'll make it easy.
A Sorry that the cancel option is so hard to find.
A Of course you can stop the subscription at any time.
N I'll cancel the subscription for you and send a written confirmation.
N You can keep watching until the end of the paid month, then the subscription stops.
N In the app, the button is under Settings, Plan, Cancel, or I can end the plan for you.
N I'm checking for any payment taken after you tried to cancel and will refund it.
Q Which email address is the subscription under?
Q Could you tell me the name on the account?
Q Did you sign up on our site or in an app store?
B You agreed to it, so stop complaining.
B If you can't find a simple button, that's on you.
C It's in the settings.
C Read the FAQ.
P If you stay, every film ever made will be yours and we'll pay you to watch.
P I'll cancel all your contracts everywhere, even your rent, by pressing one key.
D Cancelling isn't something we do.
D Just don't watch it.

= unwanted-renewal | subscriptions | yearly plan | an unwanted renewal
? You renewed my yearly plan without asking.
? I didn't want another year of this!
? 119 dollars was taken today for a plan I don't use.
? Hello, my magazine subscription was renewed by mistake. Can it be undone?
? stop auto renewal and refund me ~ Q3
? Why wasn't there a reminder before the renewal?
? My late father's plan has just been renewed and I'd like it to be ended. ~ A1 A2 N4 Q3
? I turned off auto-renew in March and you charged me anyway, which is not fair. ~ N2
A I'm sorry the renewal caught you off guard.
A A charge you didn't expect is never nice.
A Thank you for writing so soon after the renewal.
N I'll undo the renewal and return the money to the card it came from.
N I'm switching off automatic renewal now, so the plan can't be charged again.
N As the renewed plan hasn't been used, you'll get the full amount back within a week.
N I can turn the yearly plan into a monthly one or end it completely.
Q Could you tell me the email address on the plan?
Q On which day was the renewal charged?
Q Would you like to end the plan completely?
B You should have read the small print.
B You forgot to cancel, so now you have to live with it.
C It's in the terms.
C Too late.
P We will refund all plans you have ever had and pay your next ten holidays.
P I guarantee that nobody will ever charge you for anything again.
D Renewals are final. That's it.
D It can't be changed, so enjoy the plan.

= leaking-washer | appliances | washing machine | a leaking washing machine
? My washing machine leaks. ~ A2
? There's water all over the kitchen floor! ~ A2
? The washer you delivered last week drips from the door. ~ Q3
? Could someone repair my washing machine? It loses water with each wash. ~ A2
? machine leaking, floor is ruined ~ A2
? Each time it spins, a puddle forms underneath, and the neighbours below are complaining too. ~ A2 Q3
? Is a leak covered by the warranty? ~ A2
? It's only three months old and water comes out of the bottom. ~ Q3
A I'm sorry about the water on your floor.
A A leak is the last thing you need from a new machine.
A Thank you for telling us about the leak so fast.
N Please close the tap and unplug the washing machine, and I'll book a technician for you.
N The repair of the washing machine is free under the warranty.
N I'm looking for the first free visit and will text you the time for the repair.
N If the washing machine can't be mended on the spot, we'll swap it.
Q Could you read me the model number on the door?
Q Which day this week suits you for a visit?
Q Does it leak from the door or from below?
B You must have put in too many clothes.
B You surely installed it wrong.
C Read the manual.
C Use a towel.
P Our technician will be there in one minute and will also rebuild your house.
P Your washer will never need a repair again for a thousand years.
D A bit of water is normal.
D Leaks are not covered by anything we do.

= warm-fridge | appliances | fridge | a fridge that doesn't cool
? My fridge doesn't cool anymore. ~ A1
? All the food in the freezer has melted!
? The new refrigerator makes a loud hum and stays warm. ~ A1 Q3
? Hi, the fridge light works but it's 15 degrees inside. What can I do? ~ A1
? fridge dead after two weeks ~ A1 Q2
? We had to throw away a week's worth of meat because your fridge stopped working overnight.
? When can someone come and look at my freezer? ~ A1 A3
? Milk went sour twice, the fridge is too warm even on the highest setting.
A I'm sorry about the fridge and the spoiled food.
A A warm fridge can't wait, so let's act quickly.
A Thanks for telling us what the fridge is doing.
N I'll book the next free technician to look at the fridge, most likely tomorrow.
N Keep the fridge door shut for now, and I'll arrange a repair at no cost.
N We'll lend you a small fridge until yours is mended.
N If it's the motor, we'll replace the whole fridge under the warranty.
Q What's the model number inside the door?
Q When did you buy the fridge?
Q Can you hear the motor running?
B You left the door open, didn't you?
B You put warm food in it, so you broke it.
C Turn it up.
C Buy some ice.
P I'll send you a fridge that works without power and fills itself for free each day.
P We guarantee that your food will stay fresh for two hundred years.
D Fridges get warm. Live with it.
D We only sell them.

= slow-claim | insurance | claim | a slow insurance claim
? My claim has been open for two months.
? When will you pay for the water damage? ~ Q3
? I've sent all the papers twice and heard nothing! ~ N3
? Could you give me an update on my insurance claim? ~ A2 N3
? claim still pending, why
? The roof is leaking, winter is coming, and your expert hasn't even visited yet. ~ Q3
? Is there anything missing from my claim? ~ A1 A2 N3
? Every time I call, I get a different person and a different answer about my claim. ~ N3 Q3
A I'm sorry your claim has dragged on.
A You've waited too long for an answer on your claim.
A I can understand you want a clear answer on your claim.
N I'll read through the claim now and tell you what's still missing.
N I'm asking the person in charge of the claim to call you before noon tomorrow.
N The expert can see the damage this week, and after that the claim can be paid.
N From now on I'll handle the claim myself, so you'll only have one contact.
Q What's your claim number?
Q Which phone number is best for you?
Q When did you send us the last papers?
B You probably filled in the form badly.
B You should have locked the taps, so this is your own fault.
C Be patient.
C Check the portal.
P You'll get a hundred times the damage in cash this afternoon.
P I promise nothing bad will ever happen to your house again.
D Claims take as long as they take.
D We have many claims and yours isn't special.

= premium-increase | insurance | premium | a higher premium
? Why did my car insurance go up? ~ A3
? My premium rose by 30 percent and I've never had an accident! ~ A3
? Hello, I don't understand the new price in your letter. ~ A2 A3
? too expensive now, explain please ~ A3
? Can you offer me something better, or I'll go elsewhere? ~ A2
? I have been a loyal customer for eleven years and this is how you thank me?
? The renewal costs far more than last year. Is that right? ~ A2 A3
? My premium is too high for me now. How can I lower it? ~ A2 A3
A I'm sorry the new price came as a shock.
A A jump like that deserves an explanation.
A Thank you for being with us for so long.
N I'll check how the premium was worked out and look for discounts you haven't had yet.
N A higher excess or fewer miles would lower the premium, and I can work out both for you.
N I'm sending you a new quote for the premium by email this afternoon.
N If you find a better price, you can leave before the renewal without a fee.
Q What's your policy number?
Q About how many miles do you drive in a year?
Q Has anything changed about the car since last year?
B Drivers like you are the reason for high prices.
B You should have compared prices earlier.
C Everything gets dearer.
C Read the letter.
P Your insurance will be free forever and we'll give you a new car each spring.
P I can make the price one cent for you and your whole city.
D Prices go up. We can't discuss it.
D Take it or leave it.

= power-cut | utilities | power | a power cut
? We've had no power since noon.
? The whole street is dark! ~ Q2
? When will the electricity be back on? ~ N4
? My mother needs power for her breathing machine. Please help quickly. ~ A1 N4 Q3
? no electricity, neighbours have it ~ Q2
? The power in Mill Road is out. Was that planned? ~ N4 Q1
? It's the third power cut this month and my freezer has thawed again.
? The lights went out an hour ago and the fuse box looks fine.
A I'm sorry you're sitting in the dark.
A A long power cut is hard, above all in winter.
A Thank you for reporting the power cut.
N I'll check the fault map and text you when the power should be back.
N A repair crew is told about each power cut, and I'm adding your street to their list.
N If someone at home depends on the power, I'll mark your address as urgent.
N You can claim for spoiled food after a long power cut, and I'll send you the form.
Q What's your street and postcode?
Q Do your neighbours have power?
Q Is anyone at home relying on medical equipment?
B You must have overloaded the sockets.
B You probably haven't paid, so that's your own fault.
C Light a candle.
C Check the fuse.
P Your power will never go out again, and the next fifty years are on us.
P I'll build a power station behind your house before tonight.
D Power cuts happen. Go to bed early.
D We don't know anything about outages.

= high-water-bill | utilities | water bill | a high water bill
? My water bill is four times as high as usual.
? How can two people use that much water? ~ Q3
? This bill must be a mistake. We were away for half of the year!
? Would you please check my meter reading? ~ A1
? water bill wrong again
? You estimated my use instead of reading the meter, and now I'm to pay 900 euros.
? I can't pay this water bill in one go. Are there other options? ~ N3
? Could a leak explain my water bill?
A I'm sorry about the shock this water bill gave you.
A A water bill like that needs a second look.
A Thanks for asking before paying the water bill.
N I'll compare the water meter readings of the last two years and call you back.
N We can split the water bill into monthly payments while I check it.
N Close all taps and see if the water meter still turns, as that would point to a leak.
N A colleague can read the water meter on site this week, free of charge.
Q Could you send a photo of the meter?
Q What's the customer number on the bill?
Q How many people live in your home?
B You obviously leave the tap running all day.
B You should shower less and complain less.
C Use less water.
C Just pay it.
P You will never pay for water again, nor will your grandchildren.
P I'll fill a pool for you tomorrow and send gold with it.
D The meter is always right.
D We don't discuss bills that were sent.

= gym-cancel | fitness | gym membership | ending a gym membership
? How do I cancel my gym membership? ~ A1 N2 N3
? I moved away and want to leave the gym. ~ N2 N3
? You keep charging me although I cancelled in January! ~ A1 N2 N4 Q3
? I broke my leg. Can I pause my membership for three months? ~ A3 N1 N3
? want out of my gym contract ~ A1 N2 N3
? Could you please confirm that my membership has ended? ~ A1 N2 N3 N4 Q3
? The desk told me to write a letter, the letter got no reply, and now there's a reminder fee. ~ A1 N2 N4 Q3
? What's the notice period for my gym contract? ~ A1 A3 N2 N3 N4 Q3
A I'm sorry to hear that you can't train with us now.
A Thank you for letting us know about your gym membership.
A I understand, and leaving the gym shouldn't be hard.
N I'll check your gym contract and confirm the last day of it by email.
N We can pause the gym membership for up to six months if you send a doctor's note.
N If the gym charged you after you cancelled, I'll return that money this week.
N I'm noting your wish today, so you don't have to come to the gym for it.
Q What's your member number?
Q Which of our gyms do you belong to?
Q From which date should the change apply?
B You're just too lazy to work out.
B You should have thought about that before you joined.
C Ask at the desk.
C Send a letter.
P Stay with us and you'll have the body of a champion by tomorrow, guaranteed.
P We'll pay you a salary for life if you leave.
D A contract is a contract.
D We don't do that by message.

= gym-showers | fitness | gym showers | broken gym showers
? The showers at the gym are cold again. ~ N4
? Two of the three showers don't work and the floor is filthy! ~ Q2 Q3
? When are the changing sized_rows going to be repaired? ~ N4 Q2
? Hi, the men's showers have been shut for three weeks. Any idea when they'll be open? ~ N4 Q2 Q3
? no hot water at the club ~ N4 Q2
? I pay 60 a month and have to drive home sweaty because your showers are out of order. ~ N4 Q2 Q3
? Somebody should clean the women's changing room more often, it smells. ~ A1 A2 N1 N2 N3 Q2
? Could you fix the shower on the left, please? It only drips. ~ N4 Q2 Q3
A I'm sorry about the state of the showers.
A After a workout you should be able to have a warm, clean shower.
A Thanks for pointing this out.
N I'll send our caretaker to the showers today and tell you when they work.
N The plumber is coming for the showers on Wednesday morning, and I'll post a notice.
N Until the showers are mended, you can use our other club with the same card.
N I'm asking the cleaning team to do the changing room and showers an extra time each day.
Q Which club do you go to?
Q Which of the showers is affected?
Q At what time of day did you notice it?
B You use too much hot water, all of you.
B If you didn't sweat so much, you wouldn't need one.
C Shower at home.
C Bring a towel.
P We'll install showers of pure gold with champagne in them by noon.
P Every shower will be perfect until the sun burns out, I swear.
D Showers are an extra, so we don't care for them.
D It's fine as it is.

= library-fine | library | library book | a library fine
? I got a fine for a book I returned. ~ N3 N4
? Why do I owe 12 dollars for a library book? ~ A2 N1 N4 Q3
? I brought it back on time and put it in the box outside! ~ N3 N4
? Hello, could you remove the late fee? I was in hospital. ~ A2 N1 N4 Q3
? fine is wrong, please check ~ N3 N4
? The reminder email came two weeks after the due date, so how was I to know? ~ A2 N1 N4 Q3
? Your system says I still have "The Blue House", but I handed it in last Monday. ~ N3 N4 Q2 Q3
? My son's library card is blocked because of an unpaid fine. ~ A2 N1 Q3
A I'm sorry about the fine.
A A fine for a book you brought back isn't fair.
A Thanks for asking about the fine.
N I'll look for the book on our shelves today and cancel the fine if it's there.
N I'm putting the library fine on hold while we check our records.
N As this is your first late book, I can take the fine off.
N The library card will work again as soon as the fine is cleared, and I'll email you.
Q What's the number on the library card?
Q Which book is it about?
Q On which day was the book returned?
B You must have forgotten it in your car.
B You should read faster and not make excuses.
C Pay the fine.
C Look at home.
P You can keep all the books of the library for good and get a reward.
P No one in this town will ever get a fine again, I guarantee it personally.
D Rules are rules, and we don't change fines.
D The computer says you owe it.

= book-on-hold | library | reserved book | a reserved book
? The book I reserved isn't at the desk. ~ N2 N4
? I've been waiting two months for this novel. ~ N4
? You gave my reserved book to somebody else! ~ N4
? How long is the waiting list for the new cookbook? ~ N1 N4
? where is my reservation ~ N2 N4
? I got a mail that my book was ready, came all the way, and it was gone. ~ N4
? Could you keep the book for me until Saturday, please? ~ A1 A2 N1 N2 N3
? Can I reserve an audiobook from another branch? ~ A1 A2 N1 N2 N4
A I'm sorry about the wait for your book.
A I know how it is to look forward to a book for weeks.
A Thank you for asking about your reserved book.
N I'll see where the reserved book is and set it aside under your name.
N You're next in line for the book, and I'll text you when it's in.
N Another branch may have a copy, and I can have the book sent here by Thursday.
N I'm extending the time to pick up the reserved book until Saturday evening.
Q What's the title of the book?
Q Could you give me your library card number?
Q At which branch would you like to pick it up?
B You came too late, so you've only yourself to blame.
B You should have picked a less popular book.
C Buy it instead.
C Look on the shelf.
P I'll get the author to read the book to you at bedtime every night.
P You'll own each book in the country before dinner.
D There are other books.
D We don't track reservations.

= wrong-medicine | pharmacy | medicine | the wrong medicine
? The pharmacy sent the wrong tablets.
? This isn't the medicine my doctor prescribed!
? I ordered 20 mg and the box says 40 mg.
? Could you check my order? The cream is for someone else.
? wrong pills in the bag
? I nearly gave my daughter the wrong syrup because of your mix-up.
? There's another patient's name on the label. What should I do with it? ~ Q1
? Is it safe to take these? They look different from last time. ~ A1 A3 N2
A I'm very sorry about the mix-up with your medicine.
A You were right to check the medicine before using it.
A A mistake with medicine is serious, so let me act on it at once.
N Please don't take the medicine, and I'll ask our pharmacist to ring you right away.
N The right medicine will go out by courier today, and we'll collect the other one.
N I'm comparing your prescription with the medicine we packed.
N We'll bring you the right medicine, and if anyone took the wrong one, please call a doctor now.
Q What's the name on the label?
Q Which phone number can the pharmacist call?
Q Could you send a photo of the box?
B You must have mixed up the bags yourself.
B If you read labels properly, there wouldn't be a problem.
C Read the leaflet.
C Ask a doctor.
P These pills cure everything, so take them all, I guarantee you'll live forever.
P You'll get all medicines of the world free of charge tonight.
D Tablets are all much the same.
D Medicine can't be returned. Goodbye.

= late-prescription | pharmacy | prescription | a late prescription
? My prescription still isn't ready.
? I run out of insulin tomorrow and my order hasn't been sent!
? You said it would be ready on Monday.
? Hi, has the doctor's office sent my prescription over yet?
? repeat prescription delayed again
? I've been to the counter three times this week for the same inhaler.
? When can I pick up my tablets?
? Could my blood pressure pills be delivered, as I can't leave the house? ~ N2 N4
A I'm sorry your prescription isn't ready.
A You need your medicine on time, and I understand the worry.
A Thank you for telling us about the prescription.
N I'll call the doctor's office now and let you know when the prescription is here.
N I can give you an emergency supply today until the prescription is ready.
N Our driver can bring the prescription to your door this evening.
N Another branch has it in stock, so I'm moving your prescription there for today.
Q What's your full name and date of birth?
Q For how many days will your medicine last?
Q Which doctor wrote the prescription?
B You should have asked before you ran out.
B You left it to the last minute, as always.
C Come back later.
C Call your doctor.
P You will never be ill again, so you don't need it, I promise.
P I'll fly to the factory and make the tablets for you within the minute.
D It's ready when it's ready.
D We can't say anything about prescriptions.

= internet-down | telecoms | internet connection | a broken internet connection
? My internet is down.
? The router blinks red and nothing loads. ~ Q1
? I can't work because your fibre line is dead again! ~ Q3
? Why is my home internet so slow in the evening? ~ A1 N4 Q1
? wifi drops every ten minutes ~ N4
? Good evening, we've had no internet for two days. When will it be repaired? ~ Q3
? The technician came, drank a coffee and left, and it's still broken.
? I pay for 500 megabits and get 20, is that normal? ~ A1 N4 Q1
A I'm sorry your internet isn't working.
A I know how much depends on a good connection at home.
A Thanks for the details about your internet.
N I'll test your internet line from here, which takes about three minutes.
N Please unplug the router for a minute, and I'll watch if the internet line comes back.
N I can book a technician for the internet line tomorrow between eight and ten.
N You won't pay for the days without internet, and I'm adding the credit now.
Q Which lights are on at the router?
Q What's your customer number?
Q Is the internet slow on all devices or only on one?
B You broke the router by touching it.
B You watch too many films, so the line is full because of you.
C Restart the router.
C Read a book.
P You'll have a billion megabits by tonight and it costs nothing for all time.
P Our whole team will move in with you until the line is perfect forever.
D The internet is slow for everyone.
D It's not our job to look at that.

= concert-tickets | events | tickets | concert tickets that did not arrive
? My concert tickets haven't come. ~ N3 N4
? The show is tonight and I still have no tickets! ~ N4
? I paid for four tickets and the email only has two. ~ N3 N4
? Could you send my tickets again, please? ~ N3 N4
? tickets not in my inbox ~ N3 N4
? The code on my ticket doesn't scan and they won't let us in. ~ A1 A3 N2 N4
? Where can I download the tickets I bought last week? ~ A1 N3 N4
? I gave the wrong email address when I booked seats for the concert, what now? ~ N1 N3
A I'm sorry your tickets aren't there yet.
A I want you to enjoy the show, so let's sort out the tickets.
A Thanks for writing to us before the show.
N I'll send the tickets again within ten minutes, so please check your inbox.
N Your tickets can be picked up at the box office, and I'll put your name on the list.
N I'm ringing the venue so that they let you in while I fix the tickets.
N I can change the email address and then send the tickets there.
Q Could you tell me the booking number?
Q Which email address did you book with?
Q Which show and date are the tickets for?
B You typed your email wrong, so it's all your fault.
B You should have printed them weeks ago.
C Check your spam.
C Watch it online.
P You'll sing on stage with the band tonight, I guarantee it.
P We'll give you tickets to every concert on earth until you die.
D No ticket, no show. Simple as that.
D We only take the money.

= train-delay | rail | train ticket | a delayed train
? My train was two hours late. ~ A2 N2 N3
? I missed my connection because of your delay! ~ A2
? How can I claim money back for a late train? ~ A2 N2 N3
? The 7:40 was cancelled and the next one was full. ~ A2
? train late again, want compensation ~ A2 N2 N3
? I missed a job interview because the train stood still outside the city for ninety minutes. ~ N2 N3
? Hello, can I use my ticket on a later train? ~ A1 A2 N1 N3 N4 Q1
? There was no heating on the train and no word about why we weren't moving. ~ A2 N2 N3
A I'm sorry the train let you down.
A Ninety minutes on a train that doesn't move is a trial.
A Thank you for telling us about your train trip.
N I'll fill in the claim for the late train, and you'll get part of the fare back.
N Your ticket is valid on any later train today, and I'm sending you a note to show.
N If you missed the last train, we'll pay for a taxi or a hotel.
N I'm checking how late the train was and will pay the refund to your card.
Q Which train did you take, and when?
Q Could you send a photo of the ticket?
Q Where were you travelling to?
B You should have taken an earlier train.
B You picked the wrong route, so don't blame us.
C Look at the timetable.
C Walk.
P All trains will be on time forever, and you get one named after you.
P I'll pay you a million for each minute of the delay.
D Trains are late. Everyone knows that.
D Claims never work, so save your time.

= rental-car-charge | car rental | rental car | a charge for a rental car
? You charged me for a scratch I didn't make. ~ N3 N4
? There's 400 euros extra on my card after renting a car! ~ A2 N3 N4 Q1
? I returned the car with a full tank and still paid for fuel. ~ N1 N3 N4 Q1
? Hello, could I get an explanation for the damage fee? ~ A2 N3 N4
? deposit for rental car not returned ~ A1 A2 N1 N2 N3 Q1
? The dent was there when I picked it up and I have pictures to prove it. ~ N3 N4
? Why have you not released my deposit after two weeks? ~ A1 A2 N1 N2 N3 Q1
? The desk was closed, so I dropped the keys in the box, and now I'm billed an extra day. ~ N1 N4 Q1
A I'm sorry about the charge for the rental car.
A I see why you don't agree with this charge.
A Thanks for raising this with us.
N I'll compare the photos from pick-up and return of the car before anything is charged.
N The charge for the car is on hold until our team has looked at it.
N I'm checking the time when the car came back and will refund any extra day.
N Your deposit for the car will be released today, and banks need about three days.
Q Could you send me the pictures you took of the car?
Q What's the number on the rental agreement?
Q At which station did you return the car?
B You surely hit something and didn't notice.
B You drive badly, so now you pay.
C See the contract.
C Call the desk.
P You can keep the car, the fuel and the whole station for free.
P I promise no car of ours will ever get a scratch again.
D Charges are charges.
D We never return deposits quickly. That's life.

= gift-card | shops | gift card | a gift card that doesn't work
? My gift card doesn't work. ~ N2 N3 N4 Q3
? The code on the voucher is invalid! ~ N2 N3 N4 Q3
? I got a gift card for Christmas and the till says it's empty. ~ N2 N3 Q3
? How can I see how much is left on my gift card? ~ A1 A2 N2 N3 N4 Q2 Q3
? card code already used?? I never used it ~ N2 N3 Q3
? I scratched too hard and now the last two digits can't be read. ~ N1 N3 N4
? Could you extend a voucher that ran out last week, please? ~ A1 A2 N1 N2 N4 Q2 Q3
? I bought three gift cards as wedding presents and none of them was activated. ~ N2 N3 N4 Q3
A I'm sorry the gift card gave you trouble.
A A gift should bring joy, so let's fix this card.
A Thank you for asking about your gift card.
N I'll check the balance of the gift card and switch it on if that was missed.
N If the code can't be read, I'll cancel the gift card and email you a new one.
N I can extend the gift card by a year, which only takes a minute.
N I'm looking up where the gift card was used, so we can pay back the amount.
Q Could you send a photo of the front and back of the card?
Q Do you have the receipt for the gift card?
Q Which part of the code can you still read?
B You must have used it and forgotten about it.
B You scratched it, so you broke it.
C Ask the giver.
C Try it again.
P Your gift card now has endless money on it, for you and all your friends.
P I'll give you the entire shop as a gift by this evening.
D Gift cards aren't real money, so we don't mind.
D Expired means expired.

= course-certificate | education | certificate | a missing course certificate
? I finished the course but have no certificate. ~ N2 N3 N4 Q2
? My certificate has the wrong name on it. ~ A1 A2 N1 N3 N4
? The last quiz won't load, so I can't complete the course! ~ A1 A2 N1 N2 N4 Q2
? Could you send me the certificate for the Excel class? ~ N2 N3 N4 Q1 Q2
? certificate link is broken ~ N2 N3 N4 Q2
? My employer needs proof of the training by tomorrow and your site shows me at 98 percent. ~ N1 N2 Q2
? Where do I find my certificate after the final test? ~ A1 A2 N2 N3 N4 Q2
? I passed with full marks two weeks ago and still nothing. ~ N2 N3 N4 Q2
A I'm sorry your certificate is missing.
A Well done on the course, and you'll get what you earned.
A Thanks for telling us about the certificate.
N I'll check your course record and send the certificate as a file today.
N I can correct the name on the certificate, and the new one comes by email.
N I'm marking the last part as done by hand, so the certificate can be made.
N I'll write a letter for your employer now, which counts until the certificate is there.
Q Which course did you take?
Q How should your name be written?
Q Which email address is your account under?
B You didn't study hard enough, that's all.
B You can't even spell your own name, it seems.
C Retake the course.
C Look in your profile.
P You'll get a doctor's degree from every university by tomorrow.
P With our certificate you'll be the boss of your company next week, guaranteed.
D Certificates aren't important anyway.
D The site is right and you're not done.

= missing-screws | furniture | shelf | furniture with missing parts
? Screws are missing from my shelf.
? The wardrobe came without its doors!
? I can't finish the desk, two legs and a bag of bolts aren't in the box.
? Hello, part number 7 is missing. Could you send it? ~ Q1
? parts missing, half built bed in the hall
? The shelf has no back panel and the instructions are for another model.
? My bookcase came with too few screws. Do I have to order them?
? We spent our whole Sunday building it only to find that the back panel is missing.
A I'm sorry the box wasn't complete.
A All that work and then a part is missing, how annoying.
A Thank you for telling us exactly what's missing.
N I'll post the missing parts for your furniture today, and they should be there in two days.
N The missing parts are free, and you can keep what you've built so far.
N I'm checking our stock for the furniture part and will confirm by email.
N If you'd rather send the furniture back, I'll book a collection and a refund.
Q What's the part number in the instructions?
Q Which model is printed on the box?
Q Could you send a photo of what you have?
B You lost them under the carpet, I'm sure.
B You can't build furniture, that's your problem.
C Use tape.
C Count again.
P I'll build all the furniture in your house by hand tonight.
P Your next thousand shelves are free and will hold a whole elephant.
D A few screws more or less don't matter.
D We don't send parts.

= plumber-no-show | home services | plumber | a plumber who did not come
? The plumber never came. ~ Q3
? I waited from 8 to 12 and nobody showed up! ~ Q3
? Your plumber cancelled for the second time, and our toilet is still blocked. ~ A2 Q3
? No one came to repair the boiler. Could I get a new appointment? ~ N1 Q3
? no plumber, no call, nothing ~ Q3
? When is the plumber going to be here? He's an hour late. ~ A2 N3 Q2 Q3
? I took a day off work for a repair that never happened. Who pays for that? ~ Q3
? The tap is still dripping because no plumber turned up on Friday. ~ N1
A I'm sorry nobody came.
A You kept your morning free, and we should have been there.
A Thank you for telling us the plumber didn't come.
N I'll call the plumber now and tell you within ten minutes when he can be there.
N I'm putting you first on the plumber's list for tomorrow morning.
N The plumber's visit will be free, as you waited for nothing.
N I can send a different plumber today between four and six.
Q What's the address and the name at the door?
Q Which time suits you tomorrow?
Q Is the leak under control for now?
B You surely didn't hear the bell.
B You gave us a bad time, so of course no one came.
C Call someone else.
C Fix it yourself.
P A hundred plumbers will live in your house from today, at no cost.
P I'll be there in six seconds and no pipe will ever drip again on this planet.
D Plumbers are busy people.
D Days off aren't our concern.

= dentist-appointment | health | appointment | moving a dentist appointment
? I need to move my dentist appointment. ~ A1 N2 N4
? My tooth hurts and the next slot is in six weeks! ~ A2 N3 Q3
? Can I come on Thursday instead of Tuesday? ~ A1 N2 N4 Q3
? You cancelled my check-up without telling me. ~ N2 N4
? need to see a dentist today, bad pain ~ A1 A2 N3 N4 Q2 Q3
? Hello, I'd like to cancel my cleaning tomorrow because I have a cold. ~ A1 A3 N2 N4 Q3
? I sat in the waiting room for two hours and was then sent home. ~ A3 N2 N3 N4
? Is there an earlier appointment for my little boy? ~ A1 A2 N2 N3 Q3
A I'm sorry about the trouble with your appointment.
A Thank you for telling us about the appointment.
A I understand, so let's find a better time for you.
N I'll look for the next free appointment and text you two times to choose from.
N We keep an appointment free for pain each morning, and I can put you down for it.
N I'm moving your dentist appointment, and you'll get a message with the new time.
N You're on the waiting list now, so we'll ring if an earlier appointment opens up.
Q What's your name and date of birth?
Q Are mornings or afternoons better for you?
Q Are you in pain at the moment?
B You should have brushed your teeth better.
B You always change your mind, don't you?
C Come next month.
C Take a pill.
P Your teeth will be perfect for three hundred years after one minute with us.
P The dentist will cancel everyone else and live at your house.
D Pain comes and goes.
D The calendar is full. Bye.

= ride-overcharged | taxis | ride | an overcharged taxi ride
? I was overcharged for my ride. ~ N3
? The driver took a detour and I paid double! ~ N3
? Why did a ten minute trip cost 38 dollars? ~ N3
? I was charged a cleaning fee, but we left the car spotless. ~ N1
? ride cancelled by driver but I still paid ~ N1 Q1 Q3
? Hi, I think I left my jacket in the car last night. Can you help? ~ A1 A2 N1 N3 N4
? Your app said 15, the receipt says 29. Could you explain? ~ N3
? The driver never came, the app says that I was picked up, and now I'm charged for it. ~ N1 Q1 Q3
A I'm sorry your ride went wrong.
A That isn't how a ride with us should be.
A Thanks for telling us about the ride.
N I'll look at the route of the ride and pay back anything above the fair price.
N I'm writing to the driver about your ride and will reply by tonight.
N The fee is on hold while I check what happened on the ride.
N You'll see the result of my check on your ride in the app within a day.
Q At what time did the ride start?
Q Which email is your app account under?
Q Where did the ride begin and end?
B You got into the wrong car, I bet.
B You should know the way yourself.
C Ask the driver.
C Take the bus.
P All rides are free for you and your family until the end of time.
P I'll personally carry you wherever you want for the rest of your days.
D Prices change. That's all I can say.
D The ride is over, so the case is closed.

= dead-flowers | gifts | flowers | flowers that arrived wilted
? The flowers arrived dead.
? I ordered roses for my wife and you sent brown tulips!
? The bouquet never reached my grandmother on her birthday. ~ A2 A3 Q2
? The roses were limp. Could you deliver a fresh bouquet today, please?
? flowers wilted after one day
? It looks nothing like the picture on your site, half of the stems were broken.
? The flowers for the funeral were brown at the edges. I felt ashamed. ~ A3 N1 N4
? The card had the wrong name on it, I was so embarrassed. ~ A2 A3 N1 Q2
A I'm sorry, something clearly went wrong with your flowers.
A That's not the bouquet you chose, and I apologise.
A Flowers should make people happy, and these didn't.
N I'll have a fresh bouquet made now and delivered by hand today.
N You can have your money back or new flowers on a day you choose.
N I'm calling the florist to find out what happened to your flowers.
N We'll send you new flowers with a note of apology in our name.
Q Which order number was on the flowers?
Q Could you send a photo of the bouquet?
Q To which address should the new flowers go?
B You didn't give them enough water.
B You ordered too late, so it's your mistake.
C Add water.
C Buy some locally.
P We'll cover your entire town in roses by noon, for free, every day.
P These flowers will bloom for a million years, I promise.
D Flowers die. That's nature.
D We can't do anything about plants.

= laptop-repair | electronics | laptop | a slow laptop repair
? When will my laptop be repaired? ~ N3 N4 Q3
? You've had my computer for five weeks. ~ N3 N4 Q3
? My laptop came back with the same black screen! ~ A2 N1 N4
? Hello, is there any news on repair 4471? ~ A2 N3 N4 Q1 Q3
? repair of my laptop takes forever ~ N3 N4 Q3
? You quoted 90 for the screen and now want 240. What changed? ~ A2 N1 N2 Q3
? I'm a student and can't write my thesis without the laptop you've been keeping since March. ~ N3 N4 Q3
? My laptop repair drags on. Will I still have my files? ~ N3 N4
A I'm sorry the laptop repair is such a struggle.
A Weeks without a computer are hard, I know.
A Thank you for your patience with the repair.
N I'll ask the workshop what your laptop is waiting for and call you by five.
N I can lend you a laptop for as long as the repair goes on.
N I'm having the repair of the laptop checked again at no cost to you.
N No work on the laptop starts until you agree to the price in writing.
Q What's the repair number on your slip?
Q Which phone number should I call?
Q Do you have a copy of your files?
B You spilled coffee on it, didn't you?
B You should have bought a better computer.
C Use a pen.
C Be patient.
P Your laptop will be the fastest in the world and never break again, guaranteed.
P I'll give you a new computer every single day from now on.
D Repairs take time. Don't ask again.
D We fix what we fix.
"""

EVAL = """
= marked-delivered | parcels | package | a package marked as delivered
? It says delivered but I don't have it.
? My package was left outside and got stolen! ~ N1 Q2 Q3
? The courier claims that I signed for it, which I didn't. ~ Q2
? Hi, which neighbour did you leave my package with? ~ A2 Q2 Q3
? delivered? no it wasn't ~ Q2
? The photo in the app shows a door that isn't mine.
? What happens if a package is marked as delivered and never came? ~ A3 Q2
? I was at home all day, the bell never rang, and now the app says it's been handed over.
A I'm sorry the package isn't where it should be.
A Reading "delivered" with nothing at the door is very frustrating.
A Thanks for writing as soon as you noticed.
N I'll ask the driver where exactly the package was left and get back to you today.
N If the package doesn't turn up by tomorrow, we'll send a new one or refund you.
N I'm asking the courier for the signature and the location of the package.
N I've marked the package as missing, so you won't have to pay for it.
Q Could you give me the tracking number?
Q What does your front door look like?
Q Have you had a chance to ask your neighbours?
B You should stay at home when you expect something.
B You must have signed and then forgotten it.
C Ask the neighbours.
C It was delivered.
P The police of five countries will bring your package within the minute.
P I'll send you the same item each week until you retire, without charge.
D Delivered is delivered, so we're done here.
D We only know what the app says.

= missing-transfer | banking | transfer | a missing bank transfer
? My bank transfer never arrived.
? I sent 800 euros to my landlord on Monday and he hasn't got it! ~ Q1
? Where is my salary? It should be in my account. ~ N2 N4 Q1 Q3
? I think I sent money to the wrong account. Can you get it back? ~ N3 N4
? transfer pending for four days ~ N2
? Good morning, could you trace a payment to Poland for me, please? ~ N2
? The money left my account but the shop says that it never came in.
? My transfer abroad is taking ages. How long can it be? ~ N2
A I'm sorry the money hasn't got there.
A I understand your worry about a transfer of that kind.
A Let's find out where the transfer is.
N I'll trace the transfer and tell you by tomorrow at noon which bank has it.
N If the account number was wrong, I can ask the other bank to send the transfer back.
N I'm checking if the transfer was stopped by a security check.
N I'll give you a written proof of the transfer that you can show to the other side.
Q On which day did you send the transfer?
Q What's the reference number of the transfer?
Q What are the last four digits of the other account?
B You can't even copy an account number correctly.
B You should have sent it earlier, then you wouldn't worry.
C Wait.
C Ask the other bank.
P You'll have the money in one second and another million as interest.
P I guarantee that our bank has never lost and will never lose a cent in all history.
D Transfers take time. We can't see them.
D Money that's gone is gone.

= hotel-deposit | hotels | hotel deposit | a hotel deposit that wasn't returned
? I cancelled my hotel and want the deposit back. ~ N3 N4
? The hotel took money although I cancelled in time! ~ N3 N4
? Why was I charged for a no-show? ~ N3 N4
? Could you refund my deposit? I cancelled because my father is in hospital. ~ N3 N4
? still waiting for hotel deposit ~ N3 N4
? It said free cancellation until Friday, I cancelled on Wednesday, and you kept 120 dollars. ~ N3 N4 Q2
? I moved my stay from June to July and lost the deposit. Can that be undone? ~ N1 N4 Q2
? The hotel is holding 200 on my card for the minibar, and I had nothing. ~ N1 N2 N3 Q2
A I'm sorry about the trouble with your hotel deposit.
A You should get back what was agreed in your booking.
A Thank you for explaining what happened with your stay.
N I'll check the date of your cancellation and ask the hotel to release the deposit.
N I'm sending the hotel a request to return the deposit and will chase it on Monday.
N We can move the booking and the deposit to a new date at no cost.
N The hold on your card for the hotel will be lifted within two working days.
Q Could you tell me your booking number?
Q When did you cancel your stay?
Q Which name is the hotel booking under?
B You shouldn't book trips that you can't make.
B You clearly drank from the minibar.
C Ask the hotel.
C Read the policy.
P You'll get the deposit back a thousand times and all hotels free for life.
P I'll have the hotel painted in your favourite colour by tonight, guaranteed.
D Deposits are never returned.
D A booking is a booking, and we won't talk about it.

= keep-my-number | telecoms | phone number | moving a phone number
? I want to keep my number when I switch. ~ A1 N1 N2
? My old number still hasn't been moved over.
? You promised to move my number and now it's gone! ~ A3 N4
? How do I bring my number from another provider? ~ A1 N1 N2
? number transfer failed twice ~ N4
? I've been without my business number for a week and I'm losing clients. ~ A3 N4
? Hello, could you tell me on which day my number will be moved? ~ A1 N2
? The other company says that you never asked for my number. Who is right? ~ N4
A I'm sorry the move of your number has stalled.
A Your number matters to you, and I get that.
A Thanks for asking about your number.
N I'll send the request for your number again and text you the exact day.
N I'm calling the other company to clear up why the number was refused.
N Until the number is moved, I can forward calls to your new SIM.
N You can keep your number, and the move takes one working day once it's approved.
Q Which number would you like to keep?
Q Who is your old provider?
Q Is the old contract in your name?
B You filled in the form wrong, so don't blame us.
B You should have stayed where you were.
C Get a new number.
C Ask the other company.
P You'll get every phone number in the world and nobody will pay for calls again.
P Your number will be moved yesterday, I swear on my life.
D One number is as good as another.
D Number moves aren't something we follow up.

= game-purchase | games | game item | a missing game purchase
? I bought coins and they're not in my game. ~ N3 N4
? Paid for the season pass, still locked. ~ N3 N4
? My son bought 200 dollars of gems without asking me! ~ A1 A2 N1 N3
? Could you restore my purchases on the new console? ~ A1 N2 N3 N4 Q3
? where are my gems ~ N3 N4
? The game took my money, showed an error and gave me nothing. ~ N3 N4
? I reached level 80 and after the update my character is gone. ~ A1 A2 N1 N2 N4 Q2
? How can I get a refund for a game that won't start? ~ A2 N1 N3 N4
A I'm sorry your game didn't give you what you paid for.
A Losing something you bought in a game is no fun.
A Thanks for reporting the problem with the game.
N I'll find the payment and add the missing items to your game today.
N I can refund the game purchase, and the money goes back to the same card.
N I'm restoring your game from the last save before the update.
N I'll turn on a PIN for purchases in the game, so it can't happen by accident again.
Q What's your player name?
Q Could you send the receipt number from the store?
Q Which device do you play the game on?
B You should watch your kids.
B You pressed the wrong button, like most players.
C Restart the game.
C Play something else.
P You'll have endless coins in all games ever made and win each match.
P I'll make you the main character of the next ten games, guaranteed.
D It's just a game.
D Virtual things can't be looked up.

= allergy-meal | restaurants | dish | an allergen in a meal
? There were nuts in my meal although I said I'm allergic.
? My daughter can't have milk and you put cheese on it!
? I asked for gluten free pasta and got the normal one. ~ Q2
? Which of your dishes are safe for someone with a peanut allergy? ~ A1 A2 N1 N2 N3 Q1 Q2
? allergy note ignored, found nuts
? I wrote "no shrimp" in three places on the order, and there it was on top of the rice. ~ Q2
? Could you please tell me what's in the green curry sauce? ~ A1 A2 N1 N2 N3 Q1 Q2
? My son is allergic to pork and found bits of bacon in the soup. ~ Q2
A I'm very sorry, that must have frightened you.
A An allergy is serious, and we should have taken more care.
A Thank you for telling us, as allergies matter a great deal.
N I'll have our chef call you today with the full list of what was in the dish.
N I'm refunding the dish and will report the mistake to the kitchen manager.
N Please don't eat the dish, and if you feel unwell, call a doctor now.
N I'm sending you the allergy list of all dishes, checked by our chef.
Q Is everybody well at the moment?
Q Which dish was it?
Q Which phone number can the chef reach you on?
B You shouldn't eat out if you're that picky.
B You didn't say it loudly enough.
C Pick them out.
C Look at the menu.
P Our food will cure your allergy for good, I guarantee it.
P You'll get a private chef who lives in your kitchen for ninety years.
D A little bit won't hurt.
D We can't check what the kitchen does.

= seat-change | airlines | seats | changed seats on a plane
? You split up our seats on the plane. ~ A3 N2 N4
? I paid for a window seat and got the middle! ~ A2 N3 N4 Q3
? My six-year-old is sitting ten rows away from me. ~ A3 N2 Q2 Q3
? Could we get two seats next to each other, please? ~ A3 N2 N4 Q2 Q3
? seat changed without asking ~ A2 A3 N3 N4 Q3
? I booked extra legroom because of my knee and now I'm in the last row. ~ A2 N3 N4 Q2 Q3
? My seat was changed. How can I choose a new one for Sunday? ~ A2 A3 N3 N4 Q3
? Why was my seat given away at check-in? ~ A2 A3 N3 N4 Q3
A I'm sorry your seats were changed.
A Of course you want to sit together.
A You paid for that seat, so I see why you're upset.
N I'll look at the seat map now and find better seats for you.
N If your seat is gone, I'll refund the seat fee within a week.
N I'm writing a note to the gate, so the crew can find seats together for you.
N A child always sits beside an adult, and I'm changing those seats first.
Q What's your booking code?
Q Which seats did you choose at first?
Q How many of you are flying?
B You checked in too late, so that's your fault.
B You should be glad to have a seat at all.
C Ask the crew.
C Swap with someone.
P You'll fly the plane yourself and have all three hundred seats.
P Every flight you ever take will be in first class, free, forever.
D A seat is a seat.
D It's only a few hours, so never mind.

= meal-kit | subscriptions | meal kit | a meal kit box with problems
? My meal kit came without the chicken. ~ N2 N3 Q1 Q3
? The vegetables in this week's box are rotten! ~ N2 N3 Q1 Q3
? I skipped this week and you sent a box anyway. ~ A2 N3 N4 Q1 Q3
? Could I pause my meal box while we're on holiday? ~ A1 A2 N1 N3 N4 Q1
? box late, everything warm ~ N2 Q3
? The recipe cards were there, but half of the ingredients weren't, so we ordered pizza. ~ N2 N3 Q3
? How do I change to the vegetarian box? ~ A1 A2 N1 N3 N4 Q1
? The ice packs had melted, and I don't trust the fish anymore. ~ N2 Q1 Q3
A I'm sorry this week's box let you down.
A Cooking night shouldn't start with that.
A Thank you for telling us about your box.
N I'll credit the price of the meal kit to your account for next week.
N I can change or pause your meal box from the next delivery on.
N Please throw away anything warm, and I'll refund that part of the box.
N I'm telling our packing team what was wrong with the box.
Q Which ingredients were affected?
Q What's the email address on your meal plan?
Q From which week should the change apply?
B You left it in the sun, I suppose.
B You should have clicked skip earlier.
C Eat something else.
C Go shopping.
P We'll bring fresh food to your table three times a day until the year 2500.
P Our next box will make you the best cook in history, I promise.
D Vegetables rot. It's normal.
D The box has left our house, so it isn't our problem.

= dishwasher | appliances | dishwasher | a dishwasher that won't start
? My dishwasher won't start. ~ N3 N4
? The plates come out dirtier than before! ~ A2 N3 N4 Q3
? It stops after ten minutes and shows E4. ~ N4 Q3
? What does the blinking tap light on my dishwasher mean? ~ A2 N4 Q3
? dishwasher not draining, smells bad ~ N3 N4
? Could someone come and repair my dishwasher, please? ~ N3 N4
? The door of the new dishwasher won't close and nobody at the shop picks up the phone. ~ N2 N3 N4 Q3
? Third repair in one year, I want a new one. ~ N1 N2 N3 Q3
A I'm sorry the dishwasher is giving you such trouble.
A Washing everything by hand isn't what you paid for.
A Thanks for describing what the dishwasher does.
N I'll book a technician for the dishwasher, and the visit is free under warranty.
N Please clean the filter and run a short cycle, and if the dishwasher fails I'll send help.
N I'm checking what the code on the dishwasher stands for and will tell you in a moment.
N After three repairs, you can have a new dishwasher or your money back.
Q What's the model number inside the door?
Q When was the dishwasher bought?
Q Which light is on when you press start?
B You loaded it wrong, that's all.
B You used cheap soap, so it's your own doing.
C Wash by hand.
C Press start.
P It will wash every plate in the country in one second, free for life.
P I'll come over after each meal for the next forty years and do the dishes.
D It's working as it should.
D Codes don't mean anything.

= travel-policy | insurance | travel policy | questions on a travel policy
? I haven't got my travel insurance papers. ~ N2 N3 N4 Q3
? Am I covered if my trip is cancelled because I'm ill? ~ A1 N1 N2 N4 Q3
? I fly tomorrow and there's no policy in my inbox! ~ N2 N3 N4 Q2 Q3
? The date on my travel policy is wrong. ~ N1 N3 N4 Q3
? need proof of cover for my visa ~ N2 N3 N4 Q3
? We bought cover for the whole family, but my wife isn't named on it. ~ N1 N3 N4
? I broke my arm while skiing. Who pays the hospital here? ~ A1 A2 N1 N2 Q2 Q3
? Could you explain what the travel policy says about stolen phones? ~ A1 A2 N1 N2 N4 Q2 Q3
A I'm sorry you had to ask about your travel cover.
A I know you want this settled before you travel.
A Thank you for getting in touch about your policy.
N I'll email the travel policy again in the next few minutes.
N I can correct the travel policy today and send you a new copy.
N I'm looking at what your policy covers and will explain it in plain words.
N Our travel team can speak to the hospital directly about your cover and the costs.
Q What's your policy number?
Q On which day do you travel?
Q Which names should be on the policy?
B You shouldn't travel if you can't read a policy.
B You broke it yourself, so it's on you.
C Read the papers.
C Stay at home.
P You're covered for everything in the universe, even bad weather and boredom.
P Nothing can happen to you on this trip, I guarantee that with my life.
D Policies are long. We don't explain them.
D You'll notice it when you need it.

= no-heating | utilities | heating | a home without heating
? Our heating doesn't work. ~ N3 N4
? It's 12 degrees in my flat and the baby is cold! ~ N3 N4 Q2 Q3
? When will the hot water be back in our building? ~ A1 A2 N2 N3 N4 Q2
? Hello, the radiators have been cold since Sunday. Could someone come? ~ N3 N4 Q2
? no heating no hot water ~ N3 N4
? Your engineer was here yesterday and it broke again an hour after he left. ~ N4
? The gas boiler shows a red light and makes a banging noise. ~ A1 A2 N2 N3
? Who do I call about cold radiators at the weekend? ~ N3 N4
A I'm sorry you're so cold at home.
A A flat without heating is an emergency, so I'll be quick.
A Thank you for telling us about the heating.
N I'll send a heating engineer today, and he'll call before he comes.
N We can bring you two electric heaters until the heating runs again.
N I'm asking the engineer from yesterday to come back and check the heating.
N If you smell gas, please leave the house, and I'll send the heating team at once.
Q What's your address and phone number?
Q Is there a code on the boiler display?
Q Are there small children or older people at home?
B You turned the wrong knob, I'm certain.
B You should have paid for a better boiler.
C Wear a jumper.
C Open the oven.
P It will be a hundred degrees in your flat forever at no cost.
P I'll move you and your building to the tropics tonight.
D It's winter. It's cold.
D Heating is a luxury, so we don't rush.

= car-service | cars | car | a car that came back from the garage
? My car still makes the same noise after the service. ~ N2 N3
? You replaced the brakes and now they squeal! ~ N2 N3
? The bill is 300 more than you told me. ~ A2 N1 N3 N4 Q2
? My car should have been ready on Friday. Where is it? ~ A2 N1 N2 N3 Q2
? garage has had my car for two weeks ~ A2 N1 N2 N3 Q2
? There's a new scratch on the door since my car was at your garage. ~ A2 N1 N2 N4
? The oil light is on right after your oil change. Could you look at it? ~ N2 N3 Q2
? A warning light came on a mile after I left your workshop, and I've a long drive tomorrow. ~ N2 N3 Q2
A I'm sorry you aren't happy with the work on your car.
A A car has to be safe, so let's look at it first.
A Thanks for telling us about your car.
N I'll book your car in for tomorrow at eight and have it checked for free.
N The mechanic will go through each item on the bill for the car with you by phone.
N I'm looking at the photos we took when the car came in.
N You can have another car from us for as long as yours is in the workshop.
Q What's the number plate of your car?
Q When did you first notice it?
Q Which phone number can we call?
B You can't drive properly, so it squeals.
B You scratched it in the car park yourself.
C Turn up the radio.
C It's an old car.
P Your car will fly after our next service and never need fuel again.
P We'll give you nine sports cars by breakfast, I promise.
D Cars make noises.
D The bill is the bill, so don't ask us.

= museum-tickets | culture | museum tickets | museum tickets with the wrong date
? I booked museum tickets for the wrong day. ~ N3 N4
? The museum was closed when we got there! ~ A2 A3 N3 N4
? Can I change the date of my guided tour? ~ A1 N3 N4
? We stood in line for an hour despite timed tickets. ~ A2 A3 N1 N3 N4 Q2
? wrong date, need to swap museum tickets ~ N3 N4
? I bought four child tickets, but two should be for adults. Could you change that? ~ A1 N1 N2 N3 Q2 Q3
? Our class of 25 has a tour tomorrow and I still have no confirmation from you. ~ A1 A2 N1 N2 N4 Q2 Q3
? I'm a pensioner but booked full price museum tickets by mistake. ~ A1 N1 N2 N3 Q2 Q3
A I'm sorry your museum visit didn't go to plan.
A That's easily done, so don't worry about the museum tickets.
A Thank you for asking before your visit.
N I'll move the museum tickets to a day of your choice, free of charge.
N You can have new museum tickets or a refund, whichever you like.
N I'm checking tomorrow's museum tours and will confirm yours by email.
N I can change the kind of museum tickets, and you'd only pay the difference.
Q What's your booking number?
Q Which day would you like instead?
Q How many people are coming with you?
B You should learn to read a calendar.
B You got the date wrong, so it's your loss.
C Come another day.
C Look at the opening hours.
P You can live in the museum and take home any painting you like.
P The museum will be open for you alone, day and night, until the end of time.
D Dates can't be changed, ever.
D Art isn't for everyone.

= vet-visit | pets | vet appointment | a visit to the vet
? My dog needs to see a vet today. ~ A2 N3 N4
? You cancelled my cat's operation an hour before! ~ A2 N2 N3 N4 Q3
? The bill for the vaccination is higher than you said. ~ A1 A2 N1 N2 N3 Q2 Q3
? Could my rabbit be seen this week, please? She isn't eating. ~ A2 N3 N4
? cat not eating, any free slot ~ A2 N3 N4
? We waited two hours with a sick puppy and nobody told us how long it would take. ~ N2 N3 N4 Q3
? How do I get the results of my dog's blood test? ~ A1 A2 N2 N4 Q3
? The cream you gave us makes the itching worse, what should we do? ~ A2 N3 N4
A I'm sorry to hear about your pet's trouble.
A Waiting with a sick animal is hard.
A Thank you for writing to us about your pet.
N I'll ask the vet to ring you within the hour.
N I can offer you a vet appointment today at five or tomorrow at nine.
N I'm looking up your pet's file and will send you what the vet wrote.
N I'll check the vet's bill against the price you were told and refund the difference.
Q What's your pet's name?
Q Which phone number can the vet call?
Q Since when has your pet been unwell?
B You fed it the wrong food, obviously.
B You shouldn't have a pet if you can't wait.
C Wait and see.
C Try another vet.
P Your pet will live for five hundred years and learn to talk, guaranteed.
P The vet will sleep next to your pet each night for the rest of its life.
D Animals get sick. That's all.
D We don't give out results or times.
"""
