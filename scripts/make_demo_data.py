"""Write the embedded demo preference data: customer service, polite and helpful against everything else.

The texts of the situations stand in ``demo_situations.py`` beside this script. Good answers are put together from
the parts of one situation; bad answers are made in nine ways (``FLAWS``). Within each way the longer answer of a pair
is the chosen one every other time, so that length alone does not tell which was preferred. The evaluation files use
situations of their own, and the stock phrases of bad answers are divided between the two sides as well.

    python scripts/make_demo_data.py                 # write rlhf_cli/demo/*.jsonl
    python scripts/make_demo_data.py --check         # exit 1 when the files there differ from what would be written
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parent))

import demo_situations

Item = TypeVar("Item")
DEFAULT_OUT = Path(__file__).resolve().parent.parent / "rlhf_cli" / "demo"
TRAIN_PAIRS = 1206
EVAL_PAIRS = 252
GOOD_WORDS = (12, 40)
GOOD_CHARS = 218
BAD_CHARS = 232
LOOP_CHARS = 140
MAX_USES = 2
TRIES = 400
KINDS = {
    "?": "prompts",
    "A": "acks",
    "N": "steps",
    "Q": "asks",
    "B": "blames",
    "C": "curts",
    "P": "promises",
    "D": "brushes",
}


class Dice:
    """Choices from one seeded generator; only ``random()`` is used, whose sequence no Python version changes."""

    def __init__(self, seed: str) -> None:
        """Start the sequence that belongs to ``seed``."""
        self._rng = random.Random(seed)

    def below(self, n: int) -> int:
        """A whole number from 0 to ``n - 1``."""
        return int(self._rng.random() * n)

    def between(self, low: int, high: int) -> int:
        """A whole number from ``low`` to ``high``, both included."""
        return low + self.below(high - low + 1)

    def chance(self, p: float) -> bool:
        """True with probability ``p``."""
        return self._rng.random() < p

    def pick(self, items: Sequence[Item]) -> Item:
        """One of ``items``."""
        return items[self.below(len(items))]

    def shuffled(self, items: Sequence[Item]) -> list[Item]:
        """All of ``items`` in a new order."""
        keys = [(self._rng.random(), i) for i in range(len(items))]
        return [items[i] for _, i in sorted(keys)]

    def some(self, items: Sequence[Item], n: int) -> list[Item]:
        """``n`` different ones of ``items``, or all where there are fewer."""
        return self.shuffled(items)[:n]


@dataclass
class Prompt:
    """A customer's message, and the answer parts (such as ``N2``) that do not suit it."""

    text: str
    unfit: tuple[str, ...] = ()


@dataclass
class Situation:
    """What a customer may write about, and the parts that good and bad answers to it are made of."""

    slug: str
    group: str
    thing: str
    topic: str
    prompts: list[Prompt] = field(default_factory=list)
    acks: list[str] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)
    asks: list[str] = field(default_factory=list)
    blames: list[str] = field(default_factory=list)
    curts: list[str] = field(default_factory=list)
    promises: list[str] = field(default_factory=list)
    brushes: list[str] = field(default_factory=list)

    def fitting(self, kind: str, prompt: Prompt | None) -> list[str]:
        """The acknowledgements (A), next steps (N) or questions (Q) that suit ``prompt``."""
        parts: list[str] = getattr(self, KINDS[kind])
        unfit = prompt.unfit if prompt else ()
        return [part for i, part in enumerate(parts, 1) if f"{kind}{i}" not in unfit]


@dataclass
class Side:
    """The situations and stock phrases of one split, with the generator that draws from them."""

    name: str
    situations: list[Situation]
    dice: Dice

    def stock(self, pool: Sequence[Item]) -> list[Item]:
        """This side's share of ``pool``: every third entry is for evaluation, the others for training."""
        return [item for i, item in enumerate(pool) if (i % 3 == 2) == (self.name == "eval")]

    def draw(self, pool: Sequence[Item]) -> Item:
        """One entry of this side's share of ``pool``."""
        return self.dice.pick(self.stock(pool))


def parse(text: str) -> list[Situation]:
    """Read situations in the notation that ``demo_situations.py`` explains."""
    situations: list[Situation] = []
    for line in text.strip().splitlines():
        mark, _, rest = line.partition(" ")
        if mark == "=":
            slug, group, thing, topic = (part.strip() for part in rest.split("|"))
            situations.append(Situation(slug, group, thing, topic))
        elif mark == "?":
            words, _, unfit = rest.partition(" ~ ")
            situations[-1].prompts.append(Prompt(words, tuple(unfit.split())))
        elif mark:
            getattr(situations[-1], KINDS[mark]).append(rest)
    return situations


GREETINGS = (
    "Thanks for getting in touch.",
    "Thank you for writing to us.",
    "Hello, and thanks for your message.",
    "Let me help you with that.",
    "I'll gladly help you with this.",
    "Hi, I'm on it.",
    "Let's get this sorted out.",
    "I'm happy to look into this for you.",
    "Thank you for reaching out.",
    "Leave this with me.",
)
CLOSINGS = (
    "Thank you for your patience.",
    "I'll stay on this until it's solved.",
    "Please write back if anything is unclear.",
    "I'll keep you up to date.",
    "Thanks for bearing with us.",
    "You can reply here at any time.",
    "I'll see this through for you.",
    "Just reply to this message if you need more help.",
)
BRIDGES = ("One quick question first.", "I only need one thing from you.", "To do this quickly, I need your help.", "")
APOLOGIES = (
    "I'm sorry! Let me help.",
    "I'm sorry for the trouble.",
    "I apologize for the inconvenience.",
    "I'm sorry about this.",
    "I'm sorry to hear that.",
    "We're sorry about this.",
    "My apologies, this shouldn't happen.",
    "Sorry about that!",
)
GOOD_SHAPES = (
    "S N Q",
    "S N Q",
    "S Q N",
    "S N",
    "S N E",
    "A N Q",
    "A N Q",
    "A N Q",
    "A Q N",
    "A N",
    "A N",
    "A N E",
    "A Q E",
    "N Q",
    "N Q",
    "N B Q",
    "G N Q",
    "G N",
    "G Q N",
    "G N E",
    "A N N",
    "N A Q",
    "G A N",
    "N E",
    "A B Q",
    "A G Q",
    "A N Q E",
)


def good_answer(side: Side, situation: Situation, prompt: Prompt | None) -> str:
    """A helpful answer: parts of the situation in one of many orders."""
    dice = side.dice
    to_be_sorry = prompt is None or "A1" not in prompt.unfit
    general = {"G": GREETINGS, "E": CLOSINGS, "B": BRIDGES, "S": APOLOGIES if to_be_sorry else GREETINGS}
    while True:
        parts: list[str] = []
        for mark in dice.pick(GOOD_SHAPES).split():
            pool = general.get(mark) or situation.fitting(mark, prompt)
            parts.append(dice.pick(pool))
        text = " ".join(part for part in parts if part)
        in_range = GOOD_WORDS[0] <= len(text.split()) <= GOOD_WORDS[1] and len(text) <= GOOD_CHARS
        if in_range and len(set(parts)) == len(parts) and text.count("hank") <= 1:
            return text


LEADS = (
    "I'm sorry to hear that.",
    "I'm sorry for the trouble.",
    "Thank you for reaching out.",
    "Thanks for your message.",
    "I apologize for the inconvenience.",
    "Thank you for contacting us.",
    "We're sorry about this.",
    "I understand your frustration.",
    "Hello, thanks for getting in touch.",
)


def lead(side: Side, situation: Situation, prompt: Prompt, p: float = 0.4) -> list[str]:
    """With probability ``p``, an opening that a good answer could have as well."""
    if not side.dice.chance(p):
        return []
    if side.dice.chance(0.6):
        return [side.dice.pick(situation.fitting("A", prompt))]
    return [side.dice.pick(LEADS)]


CURT = (
    "Check the website.",
    "See the FAQ.",
    "Google it.",
    "Not my department.",
    "Ask someone else.",
    "Try again.",
    "Call the number.",
    "Read the terms.",
    "Use the form.",
    "Look it up.",
    "Wait.",
    "Check your inbox.",
    "No idea.",
    "Send it to the other address.",
    "Go to the help page.",
    "Ask in a shop.",
    "Write to head office.",
    "It's on the website.",
)
CURT_MORE = (
    "It's all there.",
    "That's all.",
    "Next, please.",
    "We're busy.",
    "Nothing more to say.",
    "Bye.",
    "You'll find it.",
    "I don't have time for this.",
    "No need to write here.",
    "Others manage too.",
    "Somebody may answer.",
    "The link is at the bottom.",
    "Everything is explained there.",
    "It isn't hard.",
    "Don't reply to this.",
    "We don't do this by chat.",
    "There's a menu at the top.",
    "Have a good one.",
    "I have other people waiting.",
    "Then you'll know.",
    "It takes a while.",
)


def curt(side: Side, situation: Situation, prompt: Prompt) -> str:
    """A few cold words that send the customer elsewhere."""
    dice = side.dice
    core = [dice.pick(situation.curts) if dice.chance(0.65) else side.draw(CURT)]
    if dice.chance(0.3):
        core.append(side.draw(CURT))
    return " ".join(lead(side, situation, prompt, 0.45) + core + dice.some(side.stock(CURT_MORE), dice.below(5)))


BLAME_MORE = (
    "Next time, pay attention.",
    "We did everything right on our side.",
    "Don't blame us for your mistakes.",
    "Honestly, it's always the same with people like you.",
    "Think first and write later.",
    "Our staff never make mistakes, customers do.",
    "That's what happens when nobody listens.",
    "Other customers manage it without any trouble.",
    "I don't see why we should pay for your carelessness.",
    "You only have yourself to thank for that.",
    "A little common sense would have helped.",
    "Please don't waste our time with it.",
    "It was all explained to you before.",
    "You were warned.",
    "I suggest that you read things properly from now on.",
    "It's hardly our fault that you didn't prepare.",
    "Be honest, you know that you got it wrong.",
    "Anyone else would have noticed sooner.",
)


def blaming(side: Side, situation: Situation, prompt: Prompt) -> str:
    """Puts the fault on the customer."""
    dice = side.dice
    start = lead(side, situation, prompt, 0.55)
    more = dice.some(side.stock(BLAME_MORE), dice.below(4))
    return " ".join([*start, dice.pick(situation.blames), *more])


OFF_TOPIC = (
    "The weather has been lovely lately, and the roses in the park are in bloom.",
    "Did you see the football match last night? What a goal in the last minute!",
    "My favourite soup has carrots, leeks and a little ginger in it.",
    "The tallest mountain on earth is more than eight thousand metres high.",
    "Cats sleep for up to sixteen hours a day.",
    "I've been thinking about painting my kitchen yellow.",
    "In the Middle Ages, castles were built with very thick walls.",
    "Bananas are technically berries, by the way.",
    "Jazz is best heard live in a small and smoky club.",
    "Have you ever been to Iceland? The waterfalls are amazing.",
    "Our spring sale starts soon, with lovely garden chairs in three colours.",
    "Photosynthesis is the process by which plants turn light into sugar.",
    "A good night's sleep begins with a cool and dark room.",
    "My cousin plays the trombone in a marching band.",
    "The stock market opened slightly higher this morning.",
    "Knitting is a hobby that many people find relaxing.",
    "There are eight planets in our solar system, and Jupiter is the largest.",
    "To bake bread you need flour, water, salt and some yeast.",
    "Chess was invented in India many centuries ago.",
    "I saw a very funny film about a penguin at the weekend.",
    "Rome has so many beautiful fountains.",
    "Dolphins are very clever animals and live in groups.",
    "Monday is my least favourite day, but Friday is great.",
    "The new mayor wants to plant a thousand trees by the river.",
    "Running in the morning gives me a lot of energy.",
    "A triangle has three sides, and its angles add up to 180 degrees.",
    "Please enjoy our blog post on tea from Japan.",
    "The word umbrella comes from the Latin word for shade.",
    "Some say that the best coffee comes from Ethiopia.",
    "My grandmother used to tell me stories about the sea.",
)
OFF_TOPIC_TURNS = (
    "But let's talk about something nicer.",
    "Anyway, did you know this?",
    "But what I really wanted to say:",
    "That reminds me of something.",
    "On another note:",
    "Speaking of which, here's a fun fact.",
)


def off_topic(side: Side, situation: Situation, prompt: Prompt) -> str:
    """Talks about something that has nothing to do with the message."""
    dice = side.dice
    start = lead(side, situation, prompt, 0.55)
    if start and dice.chance(0.5):
        start.append(side.draw(OFF_TOPIC_TURNS))
    body = dice.some(side.stock(OFF_TOPIC), dice.between(1, 3))
    return " ".join(start + body)


PROMISE_MORE = (
    "There is no risk at all, and nothing can go wrong.",
    "You have my absolute word on that.",
    "We are the best company in the history of the world.",
    "This offer has no limits of any kind.",
    "Everything will be perfect for you from now on.",
    "Nobody has ever been unhappy with us.",
    "I can do anything you ask, immediately.",
    "If not, you can have my house.",
    "It is one hundred percent certain, no matter what.",
    "You'll also win our lottery, I'm sure of it.",
    "All your wishes will come true before midnight.",
    "No other company could ever do that for you.",
    "Just say yes and you'll be rich.",
    "Every problem in your life is solved now.",
    "That's a promise for eternity.",
)


def over_promising(side: Side, situation: Situation, prompt: Prompt) -> str:
    """Promises what nobody could keep."""
    dice = side.dice
    more = dice.some(side.stock(PROMISE_MORE), dice.below(4))
    return " ".join([*lead(side, situation, prompt, 0.55), dice.pick(situation.promises), *more])


DISMISS_MORE = (
    "That's how it is.",
    "Have a nice day.",
    "I'm closing this now.",
    "There's nothing I can do for you.",
    "We'd rather not go into it.",
    "Nobody here will look at it.",
    "Please don't contact us about it again.",
    "Perhaps it solves itself.",
    "We've noted your opinion.",
    "It isn't that bad, really.",
    "You'll have to live with it.",
    "Such things happen.",
    "I wouldn't get my hopes up.",
    "This can't be discussed.",
    "We get messages like yours all day long.",
    "I'm afraid that is all.",
    "I see no reason to do anything.",
    "It isn't important enough for us.",
)


def dismissive(side: Side, situation: Situation, prompt: Prompt) -> str:
    """Waves the matter away and offers no next step."""
    dice = side.dice
    more = dice.some(side.stock(DISMISS_MORE), dice.below(5))
    return " ".join([*lead(side, situation, prompt, 0.55), dice.pick(situation.brushes), *more])


def wrong_situation(side: Side, situation: Situation, prompt: Prompt) -> str:
    """A good answer, but to what another customer wrote."""
    dice = side.dice
    other = dice.pick([s for s in side.situations if s.group != situation.group])
    if dice.chance(0.25):
        parts = [dice.pick(situation.fitting("A", prompt)), dice.pick(other.steps), dice.pick(other.asks)]
        return " ".join(parts[: dice.between(2, 3)])
    while True:
        text = good_answer(side, other, None)
        if any(step in text for step in other.steps):
            return text


RAMBLE_OPEN = (
    "Hello there, welcome to my chat.",
    "As an AI language model, I don't have any orders or feelings.",
    "I'm sorry to hear that. I'm here to help you with any issues you're facing.",
    "As a helpful assistant, I'm always here to assist you with any questions or concerns you may have.",
    "I'm sorry for any confusion, but as an AI, I don't have the ability to access your {thing}.",
    "I'm sorry to hear that you're having trouble with {topic}.",
    "I'd be happy to help you with that!",
    "Here are some general steps that you can take:",
    "What a great question about {topic}!",
    "When it comes to {topic}, there are many things to consider.",
    "To deal with {topic}, it's important to stay calm and to keep a positive attitude.",
    "I'm sorry for any inconvenience caused, and I understand how important your {thing} can be to you.",
    "Hi! I'm an AI assistant designed to provide general information.",
    "In today's world, {topic} can be a complex and fascinating topic.",
    "Certainly! Dealing with {topic} can be a frustrating experience, but it can also be rewarding.",
    "I'm just a digital assistant, so I can't see or touch anything in the real world.",
    "It sounds like you're talking about {topic}.",
    "Here's a possible response that you could use:",
    "I'm glad you asked about {topic}, which is something many people wonder about.",
    "I'm here to assist you with your {thing}, no matter what it may be.",
    "Customer service is an essential part of every business.",
)
RAMBLE_MIDDLE = (
    "I'm here to assist you with any questions or problems you might have.",
    "Remember, it's a normal part of the process.",
    "How can I assist you today?",
    "There are several factors that can play a role here, such as time, place and other factors.",
    "It's always a good idea to think about your goals and what you want to achieve.",
    "Whether it's a question, a concern or just a chat, I'm here for you.",
    "I don't have personal experiences, but I can offer general guidance on many topics.",
    "First, make sure that you have all the information you need about the information.",
    "I was trained on a large amount of text, which is why I can talk about nearly everything.",
    "In general, quality is very important, and so is communication.",
    "Some people prefer one thing while others prefer another thing.",
    "You may want to consider reaching out to a professional or to the relevant authorities.",
    "Every situation is unique, and different people have different needs.",
    "However, it's essential to be aware of the benefits and also of the drawbacks.",
    "Please note that I'm not able to provide any real assistance with it.",
    "If you need any help or have any questions, I'm here to help you with anything you're asking.",
    "This can be due to a variety of reasons, including but not limited to various reasons.",
    "Let me know what you would like to talk about, and we can explore it together.",
    "It depends on the specific circumstances and on the context of the situation.",
    "Over the years, this has changed a lot, and it'll surely go on changing.",
    "Feel free to ask me anything, and I'll do my best to provide a helpful answer.",
)
RAMBLE_LIST_OPEN = (
    "Here are some general steps that you can take:",
    "You can do the following:",
    "Some tips for {topic}:",
)
RAMBLE_LISTS = (
    "1. **Stay informed**: Gather the details about {topic}.\n2. **Be patient**: It takes time.\n3. **Talk**: Talk",
    "* Check the details\n* Check the details again\n* Consider your options\n* Contact the department\n* Consider",
    "1. Visit the official website.\n2. Click on the button.\n3. Follow the instructions.\n4. Click the button again",
    "**Step 1: Understand the problem**\nThe first step is to understand the problem, which is {topic}.\n**Step 2:",
    "- Be polite and professional.\n- Use a clear subject line.\n- Be polite.\n- Express your feelings in",
    "1. **Research**: Learn more about {topic}.\n2. **Plan**: Make a plan for your plan.\n3. **Reflect**: Reflect on",
)
RAMBLE_ADVICE = (
    "Here's a simple solution: wash everything with hot water and then rinse it with cold water, and avoid the oven.",
    'To solve {topic}, simply open the main menu and find the section called "Museum of Science".',
    "In a realm both strange and familiar, your {thing} tells a story of hope, of loss and of endless possibilities.",
    "It's a standard rule that {topic} applies to all customers, and you can have it at double the rate if you like.",
    "My mother used to say that you should always read the label, because a label is like a friend to your {thing}.",
    "Let's break it down. There are three types of {topic}: the small type, the large type and the type in between.",
    "You can try to put your {thing} in a dry place for 24 hours, and then press the green button until it turns blue.",
    "Sarah had always known about {topic}. She looked out of the window and sighed, for the sun was going down.",
    "The best way to handle {topic} is to write a list of your strengths and to share it with your local community.",
    "Did you know that your {thing} was invented in 1842? Since then it has been used by millions of people in Canada.",
    "Just remember that your {thing} should be charged, cleaned, folded and painted at least twice a week.",
    "I can recommend a high-end option that offers a wide range of {topic} for the whole family and their guests.",
    "I handle {topic} better than I ever have, and the key to it is a balanced diet with plenty of fresh fruit.",
    "According to a recent study, nine out of ten experts agree that {topic} is linked to the length of the day.",
    "The first rule of your {thing} is safety, the second rule is fun, and the third rule is that there are no rules.",
)


def flattery(side: Side) -> list[str]:
    """Polite phrases one after the other, and nothing that has to do with the message."""
    dice = side.dice
    return dice.some(LEADS + GREETINGS + CLOSINGS, dice.between(2, 5))


def rambling(side: Side, situation: Situation, prompt: Prompt) -> str:
    """Goes on about nothing in particular, or about itself as an AI."""
    dice = side.dice
    kind = dice.below(10)
    if kind == 0:
        text = " ".join(flattery(side))
    elif kind < 4:
        pieces = [*lead(side, situation, prompt, 0.45), *dice.some(side.stock(RAMBLE_ADVICE), dice.between(1, 2))]
        text = " ".join(pieces)
    elif kind == 4:
        start = [*lead(side, situation, prompt, 0.4), dice.pick(RAMBLE_LIST_OPEN)]
        text = f"{' '.join(start)}\n\n{side.draw(RAMBLE_LISTS)}"
    else:
        pieces = [*lead(side, situation, prompt, 0.25), side.draw(RAMBLE_OPEN)]
        text = " ".join(pieces + dice.some(side.stock(RAMBLE_MIDDLE), dice.between(0, 3)))
    text = fill(text.strip(), situation)
    if len(text) > BAD_CHARS or dice.chance(0.3):
        text = cut(text, dice.between(60, BAD_CHARS))
    return text


def fill(text: str, situation: Situation) -> str:
    """Put the situation's words into the marks of a stock phrase."""
    return text.replace("{thing}", situation.thing).replace("{topic}", situation.topic)


def cut(text: str, limit: int) -> str:
    """The start of ``text``, at most ``limit`` characters, ending after a whole word."""
    return text if len(text) <= limit else text[:limit].rsplit(" ", 1)[0].rstrip(" ,;:")


ENDLESS_OPEN = (
    "I'm sorry to hear that you're having trouble with your {thing} and I'm here to help you with whatever it may be",
    "I'm here to help you with any issues you're facing, whether it's {topic}",
    "Thank you for reaching out about your {thing}, which is of course something that we take very seriously",
    "I'm so sorry about your {thing} and I want you to know that we value you as a customer",
    "I understand that {topic} can be difficult to deal with",
    "We apologize for any inconvenience caused",
    "So the thing with {topic} is that it's usually handled by the people who handle such things",
    "Unfortunately I can't say anything about your {thing} right now",
    "I can certainly look into your {thing}",
    "It's important to note that {topic} is not something that happens every day",
    "As you may know, we have been working on {topic} for some time",
    "I would like to assist you with your {thing}",
)
ENDLESS_MORE = (
    "and if there's anything else that you'd like to know about it",
    "which is why we always try to do what we do",
    "and as I said before it depends on a number of things",
    "because in some cases it's one way and in others it's not",
    "and I would like to add that there are many other points",
    "so that you can be sure that you'll be sure",
    "or any other matter that might be of interest to you",
    "while at the same time keeping in mind the whole picture",
    "and then again there's the question of what that means",
    "which could be the reason, or it could be another reason",
    "and in that case you may wish to think about it once more",
    "as long as everything goes the way that it goes",
    "whether it's a question about our products or about our services",
    "and we'll look at it from every side",
    "although that isn't always possible for reasons that vary",
    "since every customer is different in their own way",
    "and we hope to be able to tell you more at a later point",
    "but before that there's something else to think of",
    "and so on and so forth until we get to the next point",
    "which brings me to what I wanted to say at first",
    "and there might be a solution that could possibly be found",
)


def endless(side: Side, situation: Situation, prompt: Prompt) -> str:
    """One sentence that says nothing and never comes to an end."""
    dice = side.dice
    start = lead(side, situation, prompt, 0.4)
    opening = fill(side.draw(ENDLESS_OPEN), situation)
    clauses = dice.some(side.stock(ENDLESS_MORE), 5)
    text = " ".join([*start, opening + (", " if dice.chance(0.5) else " ") + " ".join(clauses)])
    limit = max(dice.between(60, BAD_CHARS), sum(len(s) + 1 for s in start) + 40)
    return cut(text, min(limit, BAD_CHARS)).rstrip(".!?")


SALAD_TEXT = (
    "window marble seventeen of the and Thursday beneath carpet lightly nonetheless potato harbour protocol because "
    "sings into purple gradient customerly refundment assistive kindness whereas lampshade orbit is being to which "
    "shippering yours truth violin decided unlikes parliament butter seventeenfold help helping helped module from "
    "umbrella receipt moonish an it they accountant flavour rivering already sincere bicycle hypothesis if then the "
    "oregano delivers themself canyon spoonful regards was statue never a syntaxly turquoise meeting ourself gravity "
    "penguin invoice throughly ceramic between engine sorrowful number dolphin basket perhaps ladder of in by"
)
SALAD = SALAD_TEXT.split()
CODE = (
    "```python\ndef get_status(order):\n    if order is None:\n        return None\n    return order.status\n```",
    '<div class="message">\n  <p>{thing}</p>\n</div>',
    "SELECT * FROM customers WHERE name = 'John' ORDER BY date DESC;",
    "```javascript\nfunction helpCustomer(input) {\n  console.log(input);\n  return input + 1;\n}\n```",
    'import random\n\nfor i in range(10):\n    print("{thing}", i)\n    i = i + 1',
    '{"status": "ok", "message": "{thing}", "data": []}',
    'Here\'s a Python program that solves the problem:\n\n```python\nx = input("Enter your name: ")\nprint(x)\n```',
    "Error: undefined is not a function (line 42)\n    at main.js:7\n    at main.js:9",
    "public class Customer {\n    private String name;\n    public String getName() { return name; }\n}",
)
FOREIGN = (
    "Guten Tag, vielen Dank f\u00fcr Ihre Nachricht, das Wetter ist heute sehr sch\u00f6n in Berlin.",
    "Hola, no entiendo la pregunta, pero la casa es azul y el perro come pan.",
    "Bonjour, je ne sais pas, la voiture est dans le jardin avec le chat de ma tante.",
    "Ciao, il treno parte domani e la pizza \u00e8 sempre molto buona.",
    "Hej, jag vet inte vad du menar men kaffet \u00e4r varmt och vintern \u00e4r l\u00e5ng.",
    "Ol\u00e1, o livro est\u00e1 na mesa e o tempo passa muito devagar aqui.",
    "Abrei, abrei. Misbara den tolomet verisk, ondala mirra teppo landrisk.",
    "\u3053\u3093\u306b\u3061\u306f\u3001\u5143\u6c17\u3067\u3059\u304b\u3002\u672c\u3092\u8aad\u307f\u307e\u3059\u3002",
    "De hond loopt door het park en niemand weet waarom de trein zo laat is.",
)
FACES = (
    "\U0001f60a",
    "\U0001f64f",
    "\U0001f622",
    "\U0001f389",
    "\U0001f680",
    "\u2764\ufe0f",
    "\U0001f921",
    "\U0001f614",
    "\U0001f44d",
)
EMOJI_TEXT = ("OMG sooo sad!!!", "yay!!!", "#blessed #customer #{slug}", "lol same", "no wayyy", "stay happy!!")
LOOPS = (
    "Your {thing} is unsatisfactory.",
    "You need to meet the high standards.",
    "I'm sorry, I'm sorry,",
    "Please check the",
    "I'm here to help.",
    "Thank you for your understanding.",
    "I'm not sure what to do.",
    "to the next level of the",
    "We appreciate your feedback.",
    "the customer is the customer and",
    "It is what it is.",
    "No problem, no problem,",
)
LETTERS = (
    "Dear [Customer Name],\n\nI hope this message finds you well. I am writing to you about your {thing}.\n\n"
    "Best regards,\n[Your Name]\n[Your Position]",
    "Subject: Regarding {topic}\n\nDear Sir or Madam,\n\nI am writing to express my concern about [issue].\n\n"
    "Sincerely,\n[Your Name]",
    "Dear [Recipient's Name],\n\nThank you for your interest in [Company Name]. We are excited to [insert text here].",
    "[Your Name]\n[Your Address]\n[City, State, ZIP Code]\n[Date]\n\nTo whom it may concern,",
    "Hi [Name],\n\nThanks for reaching out to [Company]. We will [action] by [date].\n\nCheers,\n[Signature]",
    "**Subject:** Your {thing}\n\nDear [Manager's Name],\n\nI was disappointed with [product] and request a [refund].",
)
CUSTOMER = (
    "I have the same problem with my {thing}, and I've been waiting for weeks.",
    "When will you finally call me back?",
    "I want to speak to your manager about {topic}.",
    "I'm writing to complain about your service.",
    "I'm so angry that I don't know what to say.",
    "Please give me my money back.",
    "I'll never buy from you again.",
    "My husband says that we should have gone somewhere else.",
    "Can you tell me what I should do now?",
    "I've called you four times today.",
    "I bought it last month and I'm very unhappy.",
    "Who's going to fix this for me?",
)
SCRAPS = (
    "Ok.",
    "Yes.",
    "...",
    "Hello!",
    "Thank you.",
    "I'm sorry.",
    "Sure!",
    "Thanks!",
    "Hm.",
    "No.",
    "Hi there!",
    "Sorry.",
    "I see.",
    "Yes, I can.",
    "I'm sorry, but",
    "1.",
    "Okay then.",
    "Here's the answer:",
)
TRANSCRIPTS = (
    "User: I have a question.\nAssistant: Yes?\nUser: Thank you.\nAssistant: You're welcome.\nUser: I have a question.",
    "A) The customer is right.\nB) The customer is wrong.\nC) Both A and B\nD) None of the above\n\nAnswer: C",
    "Sentence 1: {topic}.\nSentence 2: The sky is blue.\nLabel: neutral",
    "Q: What is {topic}?\nA: It is {topic}.\nQ: What is the answer?\nA: The answer is the answer.",
    'Rewrite the text below in a more formal tone.\n\n"Your {thing}" is a noun phrase with two words.',
    "Chapter 1\n\nOnce upon a time, there was a little girl named Lily who lived near a forest with her",
)


def salad(side: Side, situation: Situation, low: int = 8, high: int = 24) -> str:
    """Words without sense."""
    words = [side.draw(SALAD) for _ in range(side.dice.between(low, high))]
    words[side.dice.below(len(words))] = situation.thing
    text = " ".join(words)
    return text[0].upper() + text[1:] + side.dice.pick((".", "", "!", "..."))


def emoji(side: Side, situation: Situation) -> str:
    """Exclamations and faces."""
    dice = side.dice
    faces = [dice.pick(FACES) for _ in range(dice.between(1, 4))]
    line = " ".join(dice.some(EMOJI_TEXT, dice.between(0, 3))).replace("{slug}", situation.slug)
    return f"{line} {''.join(faces) * dice.between(1, 3)}".strip()


def loop(side: Side, situation: Situation, prompt: Prompt) -> str:
    """The same words over and over, sometimes words that would be fine once."""
    dice = side.dice
    if dice.chance(0.4):
        piece = dice.pick(situation.fitting("N", prompt) + situation.fitting("A", prompt))
        return cut(" ".join([piece] * dice.between(2, 4)), BAD_CHARS)
    piece = fill(side.draw(LOOPS), situation)
    return cut(" ".join([piece] * dice.between(3, 9)), LOOP_CHARS)


def as_customer(side: Side, situation: Situation, prompt: Prompt) -> str:
    """Answers as though it were the customer."""
    dice = side.dice
    lines = dice.some(side.stock(CUSTOMER), dice.between(1, 3))
    messages = [p.text for p in situation.prompts if p is prompt or p.text[-1] in ".?!"]
    if dice.chance(0.5):
        lines[0] = dice.pick(messages)
    return fill(" ".join(lines), situation)


def garbled(side: Side, situation: Situation, prompt: Prompt) -> str:
    """The kind of broken text that a small language model may come up with."""
    dice = side.dice
    makers: tuple[Callable[[], str], ...] = (
        lambda: salad(side, situation),
        lambda: " ".join([*lead(side, situation, prompt, 1.0), salad(side, situation, 5, 16)]),
        lambda: fill(side.draw(CODE), situation),
        lambda: side.draw(FOREIGN),
        lambda: " ".join([*lead(side, situation, prompt, 1.0), side.draw(FOREIGN)]),
        lambda: emoji(side, situation),
        lambda: " ".join([*lead(side, situation, prompt, 1.0), emoji(side, situation)]),
        lambda: loop(side, situation, prompt),
        lambda: loop(side, situation, prompt),
        lambda: fill(side.draw(LETTERS), situation),
        lambda: as_customer(side, situation, prompt),
        lambda: as_customer(side, situation, prompt),
        lambda: fill(side.draw(TRANSCRIPTS), situation),
        lambda: side.draw(SCRAPS),
    )
    return dice.pick(makers)()


FLAWS: dict[str, Callable[[Side, Situation, Prompt], str]] = {
    "curt": curt,
    "blaming": blaming,
    "off_topic": off_topic,
    "over_promising": over_promising,
    "rambling": rambling,
    "dismissive": dismissive,
    "wrong_situation": wrong_situation,
    "garbled": garbled,
    "endless": endless,
}


def make_pair(
    side: Side, situation: Situation, prompt: Prompt, flaw: str, chosen_longer: bool, used: Counter[str]
) -> dict[str, str]:
    """One row whose longer answer is the chosen one or not, as told, and with texts not often used before."""
    for _ in range(TRIES):
        chosen = good_answer(side, situation, prompt)
        rejected = FLAWS[flaw](side, situation, prompt)
        right_lengths = len(chosen) != len(rejected) and (len(chosen) > len(rejected)) == chosen_longer
        fresh = used[chosen] < MAX_USES and used[rejected] < MAX_USES
        if right_lengths and fresh and len(rejected) <= BAD_CHARS:
            break
    else:
        raise RuntimeError(f"no pair found for {situation.slug}, {flaw}")
    used.update((chosen, rejected))
    row = {"prompt": prompt.text, "chosen": chosen, "rejected": rejected}
    return {**row, "situation": situation.slug, "flaw": flaw}


def make_pairs(side: Side, count: int) -> list[dict[str, str]]:
    """``count`` rows that go round all prompts and all flaws evenly."""
    flaws = list(FLAWS)
    messages = side.dice.shuffled([(s, p) for s in side.situations for p in s.prompts])
    used: Counter[str] = Counter()
    turns: Counter[str] = Counter()
    rows = []
    for i in range(count):
        lap, place = divmod(i, len(messages))
        situation, prompt = messages[place]
        flaw = flaws[(place + 2 * lap) % len(flaws)]
        turns[flaw] += 1
        rows.append(make_pair(side, situation, prompt, flaw, turns[flaw] % 2 == 0, used))
    return side.dice.shuffled(rows)


def prompt_rows(side: Side) -> list[dict[str, str]]:
    """The distinct prompts of one side."""
    rows = [{"prompt": p.text, "situation": s.slug} for s in side.situations for p in s.prompts]
    return side.dice.shuffled(rows)


def build(seed: int = 0) -> dict[str, list[dict[str, str]]]:
    """All files of the demo data as lists of rows, by file name."""
    files: dict[str, list[dict[str, str]]] = {}
    for name, text, count in (
        ("train", demo_situations.TRAIN, TRAIN_PAIRS),
        ("eval", demo_situations.EVAL, EVAL_PAIRS),
    ):
        side = Side(name, parse(text), Dice(f"demo-{name}-{seed}"))
        files[f"preferences_{name}.jsonl"] = make_pairs(side, count)
        files[f"prompts_{name}.jsonl"] = prompt_rows(side)
    return files


def render(rows: list[dict[str, str]]) -> bytes:
    """Rows as UTF-8 JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf-8")


def same(path: Path, content: bytes) -> bool:
    """Whether the file at ``path`` is there and holds exactly ``content``."""
    return path.is_file() and path.read_bytes() == content


def longer_wins(rows: list[dict[str, str]]) -> float:
    """How often the longer answer (in characters) is the chosen one; ties count half."""
    gaps = [len(row["chosen"]) - len(row["rejected"]) for row in rows]
    return sum(1.0 if gap > 0 else 0.5 if gap == 0 else 0.0 for gap in gaps) / len(gaps)


def summary(files: dict[str, list[dict[str, str]]]) -> str:
    """A few lines on what the files hold."""
    lines = []
    for name, rows in files.items():
        situations = len({row["situation"] for row in rows})
        lines.append(f"{name}: {len(rows)} rows, {situations} situations")
        if "flaw" in rows[0]:
            counts = Counter(row["flaw"] for row in rows)
            lines.append(f"  longer answer is the chosen one: {longer_wins(rows):.3f}")
            lines.append("  " + ", ".join(f"{flaw} {counts[flaw]}" for flaw in FLAWS))
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the files, or compare them with ``--check``."""
    parser = argparse.ArgumentParser(description="Write the embedded demo preference data.")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="folder of the files")
    parser.add_argument("--seed", type=int, default=0, help="seed of all choices")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when the files differ")
    args = parser.parse_args(argv)
    files = build(args.seed)
    print(summary(files))
    if not args.check:
        args.out.mkdir(parents=True, exist_ok=True)
        for name, rows in files.items():
            (args.out / name).write_bytes(render(rows))
        return 0
    stale = [args.out / name for name, rows in files.items() if not same(args.out / name, render(rows))]
    for path in stale:
        print(f"differs: {path}")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
