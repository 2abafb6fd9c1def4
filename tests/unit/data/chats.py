"""Chat templates of well-known shapes, and small tokenizers for them."""

import json
from dataclasses import dataclass

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from rlhf_cli.models.byte_tokenizer import byte_tokenizer

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set turns = messages[1:] %}{% set system = messages[0]['content'] %}"
    "{% else %}{% set turns = messages %}{% set system = false %}{% endif %}"
    "{% for m in turns %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}"
    "{% if loop.index0 == 0 and system %}{% set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + m['content'] %}"
    "{% else %}{% set content = m['content'] %}{% endif %}"
    "{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA_3 = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + m['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\\n' + m['content'] + eos_token + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}"
    "{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\\n' + m['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
VICUNA = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] + ' ' }}"
    "{% elif m['role'] == 'user' %}{{ 'USER: ' + m['content'] + ' ' }}"
    "{% else %}{{ 'ASSISTANT: ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
NO_GENERATION_PROMPT = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
)
PLAIN_END = (  # the turn ends in a line's end, which is no token of its own
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
TRIMMING = CHATML.replace("m['content']", "m['content'] | trim")
HEADERS_NOT_SPECIAL = (  # as DeepSeek writes them: added tokens, of which those that open a turn are not special
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@dataclass(frozen=True)
class Shape:
    """A template, the special tokens that it needs, and what it is known to do."""

    template: str
    special: tuple[str, ...] = ()
    end: str = "</s>"
    takes_system: bool = True
    bos: str = "none"  # how many are written: none, one, or one a user message
    trims: bool = False
    lead: str = ""  # between prompt and answer
    added: tuple[str, ...] = ()  # tokens that are not special


SHAPES = {
    "chatml": Shape(CHATML, ("<|im_start|>", "<|im_end|>"), "<|im_end|>"),
    "llama-2": Shape(LLAMA_2, bos="user", trims=True, lead=" "),
    "llama-3": Shape(
        LLAMA_3, ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), "<|eot_id|>", bos="one", trims=True
    ),
    "zephyr": Shape(ZEPHYR),
    "gemma": Shape(
        GEMMA, ("<start_of_turn>", "<end_of_turn>"), "<end_of_turn>", takes_system=False, bos="one", trims=True
    ),
    "vicuna": Shape(VICUNA, bos="one", lead=" "),
    "no-generation-prompt": Shape(NO_GENERATION_PROMPT, ("<|im_start|>", "<|im_end|>"), "<|im_end|>"),
    "plain-end": Shape(PLAIN_END),
    "trimming": Shape(TRIMMING, ("<|im_start|>", "<|im_end|>"), "<|im_end|>", trims=True),
    "headers-not-special": Shape(HEADERS_NOT_SPECIAL, bos="one", added=("<|user|>", "<|assistant|>", "<|system|>")),
}
CORPUS = ["the cat sat on the mat . user assistant system model hello there , how are you ? 1 2 3 yes no " * 20]
UNKNOWN, BOS, EOS, PAD = "<unk>", "<s>", "</s>", "<pad>"


def _fast(tokenizer: Tokenizer, before: list[str], behind: list[str]) -> PreTrainedTokenizerFast:
    """Wrap a tokenizer that puts special tokens around every text."""
    wanted = [(name, tokenizer.token_to_id(name)) for name in {*before, *behind}]
    if wanted:
        single = " ".join([*before, "$A", *behind])
        tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=wanted)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=UNKNOWN, bos_token=BOS, eos_token=EOS, pad_token=PAD
    )


def byte_pairs() -> PreTrainedTokenizerFast:
    """Pairs of bytes as GPT-2 merges them; BOS before every text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=[UNKNOWN, BOS, EOS, PAD], show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return _fast(tokenizer, [BOS], [])


def sentence_pieces() -> PreTrainedTokenizerFast:
    """Pieces with a space before them, as Llama 2's tokenizer makes them: one before a text, too."""
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = [UNKNOWN, BOS, EOS, PAD, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False, max_token_length=6)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return _fast(_without_added_bytes(tokenizer.to_str()), [BOS], [])


def _without_added_bytes(described: str) -> Tokenizer:
    """Make plain pieces of the bytes, which the trainer took for special tokens."""
    whole = json.loads(described)
    whole["added_tokens"] = [token for token in whole["added_tokens"] if not token["content"].startswith("<0x")]
    return Tokenizer.from_str(json.dumps(whole))


def words() -> PreTrainedTokenizerFast:
    """Words between spaces; BOS before every text, EOS behind it; what it does not know is lost."""
    tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(special_tokens=[UNKNOWN, BOS, EOS, PAD], show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return _fast(tokenizer, [BOS], [EOS])


def byte_by_byte() -> PreTrainedTokenizerFast:
    """The built-in tokenizer, under the names of the others."""
    tokenizer = byte_tokenizer()
    names = {"unk_token": UNKNOWN, "bos_token": BOS, "eos_token": EOS, "pad_token": PAD}
    tokenizer.add_special_tokens(names)
    return tokenizer


TOKENIZERS = {"bytes": byte_by_byte, "byte-pairs": byte_pairs, "sentence-pieces": sentence_pieces, "words": words}


def tokenizer_for(name: str, shape: Shape) -> PreTrainedTokenizerFast:
    """Return a tokenizer with a template and the tokens that it needs."""
    tokenizer = TOKENIZERS[name]()
    tokenizer.add_special_tokens({"additional_special_tokens": list(shape.special)})
    tokenizer.add_tokens(list(shape.added))
    tokenizer.chat_template = shape.template
    return tokenizer
