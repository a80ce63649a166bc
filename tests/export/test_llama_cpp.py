"""llama.cpp itself opens what was exported: same token ids, same logits, same text."""

import json

import numpy as np
import pytest
import torch
from architectures import deep_model, make_tokenizer, random_ids, random_scores, tiny_model, with_recipe
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX as QWEN2

import numprune
from numprune import ModuleKey, Recipe, allocate, calibrate, prune
from numprune.export import export
from numprune.models.model import slice_module

llama_cpp = pytest.importorskip(
    "llama_cpp", reason="needs llama-cpp-python, which is built from source", exc_type=ImportError
)

_F32 = 0  # ggml's number, for the cache of keys and values

# From the tokenizer.json of Llama 3.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

TEXTS = (
    'Once upon a time, there was a little girl named Lily. She said: "I\'ll go!"',
    "  two spaces,\ttabs\tand\n\nempty lines   \n at the end \n",
    "In 1987, 12345678 people paid $3.50; that's 1/3 of 100%.",
    "Größe, naïve café, Ωμέγα, привет мир, 你好世界, 🙂🙃 e\u0301",
    "HTTPServer x_1 = foo(bar[0]); // don't WE'VE they'LL",
    "ÉCOLE Élève ÀB ΑΒγδ ПРИВЕТ naïveCafé हिन्दी में ไทย",
)


HELD_OUT = [json.loads(line)["text"] for line in numprune.held_out_text().read_text().splitlines()]


def open_file(path, tokens=64, cache=_F32):
    return llama_cpp.Llama(
        str(path), n_ctx=tokens, logits_all=True, type_k=cache, type_v=cache, n_threads=1, verbose=False
    )


def logits_of(engine, ids):
    engine.reset()
    engine.eval(list(ids))
    return np.array(engine.scores[: len(ids)])


def compare(model, path, ids, tolerance):
    """Logits of both at every position; with random weights of this size they are of order 1."""
    with torch.no_grad():
        ours = model.module(torch.as_tensor(ids)[None]).logits[0].numpy()
    theirs = logits_of(open_file(path), ids)
    np.testing.assert_allclose(theirs, ours, atol=tolerance)
    assert (theirs.argmax(1) == ours.argmax(1)).all()


def saved(model, tmp_path, **options):
    return export(model, tmp_path / "model.gguf", format="gguf", options=options).path


def sliced(model, keep):
    return model.around(slice_module(model.module, model.adapter, keep))


UNEVEN = {
    ModuleKey(0, "attention"): (1,),
    ModuleKey(0, "mlp"): tuple(range(0, 24, 3)),
    ModuleKey(1, "mlp"): tuple(range(19)),
}
PLANS = {
    "dense": {},
    "uneven": UNEVEN,
    "first attention empty": {**UNEVEN, ModuleKey(0, "attention"): ()},
    "last attention empty": {**UNEVEN, ModuleKey(1, "attention"): ()},
    "first mlp empty": {**UNEVEN, ModuleKey(0, "mlp"): ()},
    "last mlp empty": {**UNEVEN, ModuleKey(1, "mlp"): ()},
    "all empty": {ModuleKey(layer, kind): () for layer in (0, 1) for kind in ("attention", "mlp")},
}


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", ["llama", "llama-biases", "llama-gqa-tied", "llama3-rope", "qwen2", "phi3"])
def test_logits_at_every_position(name, plan, tmp_path):
    model = sliced(tiny_model(name, tokenizer=make_tokenizer()), PLANS[plan])
    compare(model, saved(model, tmp_path, dtype="f32"), random_ids(1, 48)[0].tolist(), 1e-4)


@pytest.mark.parametrize("plan", PLANS)
def test_qwen3_with_tied_embeddings(plan, tmp_path):
    model = sliced(tiny_model("qwen3", tokenizer=make_tokenizer(), tie_word_embeddings=True), PLANS[plan])
    compare(model, saved(model, tmp_path, dtype="f32"), random_ids(1, 48)[0].tolist(), 1e-4)


def test_qwen3_with_an_output_layer_and_equal_counts(tmp_path):
    keep = {ModuleKey(layer, "attention"): (0, 2, 3) for layer in (0, 1)}
    keep |= {ModuleKey(layer, "mlp"): tuple(range(layer, 20 + layer)) for layer in (0, 1)}
    model = sliced(tiny_model("qwen3", tokenizer=make_tokenizer()), keep)
    compare(model, saved(model, tmp_path, dtype="f32"), random_ids(1, 48)[0].tolist(), 1e-4)


@pytest.mark.parametrize("name", ["llama", "llama-biases", "llama-gqa-tied", "qwen2", "phi3"])
def test_what_went_as_a_whole_is_gone_there_too(name, tmp_path):
    """A layer in the middle, the attention of one and the MLP of another."""
    dense = deep_model(name, tokenizer=make_tokenizer())
    stats = calibrate(dense, random_ids(8, 32, seed=1), samples=8, sequence_length=32)
    recipe = Recipe(ratio=0.4, drop=("1", "0.attention", "3.mlp"), compensation="none")
    model = prune(dense, allocate(random_scores(dense), recipe), stats)
    assert model.layers == 3
    compare(model, saved(model, tmp_path, dtype="f32"), random_ids(1, 48)[0].tolist(), 1e-4)


@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_scaled_rotary_embeddings(kind, tmp_path):
    rope = {"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}
    model = sliced(tiny_model("llama-gqa-tied", tokenizer=make_tokenizer(), rope_parameters=rope), UNEVEN)
    compare(model, saved(model, tmp_path, dtype="f32"), random_ids(1, 48)[0].tolist(), 1e-4)


def test_mistral_within_its_window(tmp_path):
    model = sliced(tiny_model("mistral", tokenizer=make_tokenizer(), sliding_window=32), UNEVEN)
    compare(model, saved(model, tmp_path, dtype="f32"), random_ids(1, 32)[0].tolist(), 1e-4)


@pytest.mark.parametrize("compensation", ["paper", "bias"])
def test_a_pruned_and_compensated_model(compensation, tmp_path):
    model = tiny_model("llama-gqa-tied", tokenizer=make_tokenizer())
    stats = calibrate(model, random_ids(8, 32, seed=1), samples=8, sequence_length=32)
    recipe = Recipe(ratio=0.5, allow_empty=True, prune={ModuleKey(1, "attention"): tuple(range(4))})
    pruned = prune(model, with_recipe(allocate(random_scores(model), recipe), compensation=compensation), stats)
    compare(pruned, saved(pruned, tmp_path, dtype="f32"), random_ids(1, 48)[0].tolist(), 1e-4)


@pytest.mark.parametrize(("dtype", "tolerance"), [("f16", 0.02), ("bf16", 0.1), ("q8_0", 0.2)])
def test_the_smaller_types(dtype, tolerance, tmp_path):
    model = sliced(tiny_model("llama-gqa-tied", tokenizer=make_tokenizer()), UNEVEN)
    ids = random_ids(1, 48)[0].tolist()
    with torch.no_grad():
        ours = model.module(torch.tensor([ids])).logits[0].numpy()
    theirs = logits_of(open_file(saved(model, tmp_path, dtype=dtype)), ids)
    np.testing.assert_allclose(theirs, ours, atol=tolerance)
    assert np.abs(theirs - ours).max() > 1e-4  # or it was not that type


@pytest.fixture(scope="module")
def stories(tmp_path_factory):
    """The embedded model pruned by 30 %, and its float32 file."""
    model = numprune.load("tiny-stories")
    stats = calibrate(model, "self", samples=16, sequence_length=128)
    pruned = prune(model, allocate(numprune.score(model, stats), Recipe(ratio=0.3)), stats)
    return pruned, saved(pruned, tmp_path_factory.mktemp("stories"), dtype="f32")


def test_the_embedded_model_predicts_the_same_tokens(stories):
    model, path = stories
    ids = model.tokenizer(HELD_OUT[0])["input_ids"][:256]
    with torch.no_grad():
        ours = model.module(torch.tensor([ids])).logits[0].numpy()
    exact, half = (logits_of(open_file(path, 256, cache), ids) for cache in (_F32, 1))
    for theirs, tolerance in ((exact, 2e-3), (half, 0.1)):
        np.testing.assert_allclose(theirs, ours, atol=tolerance)
        assert (theirs.argmax(1) == ours.argmax(1)).all()


def test_the_embedded_model_tells_the_same_story(stories):
    model, path = stories
    prompt = "Once upon a time"
    ours = numprune.generate(model, prompt, max_new_tokens=80, temperature=0.0)
    engine = open_file(path, 256)
    theirs = engine(prompt, max_tokens=80, temperature=0.0, repeat_penalty=1.0)["choices"][0]["text"]
    assert (prompt + theirs).strip() == str(ours).strip()


def test_the_embedded_tokenizer(stories):
    model, path = stories
    engine = open_file(path)
    for text in TEXTS:
        assert engine.tokenize(text.encode(), special=True) == model.tokenizer(text)["input_ids"], text


def test_llama_cpp_quantises_it_further(stories, tmp_path):
    model, path = stories
    small = tmp_path / "small.gguf"
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M
    settings.nthread = 1
    assert llama_cpp.llama_model_quantize(str(path).encode(), str(small).encode(), settings) == 0
    assert small.stat().st_size < path.stat().st_size / 3
    ids = model.tokenizer(HELD_OUT[0])["input_ids"][:256]
    exact, theirs = (logits_of(open_file(file, 256), ids) for file in (path, small))
    assert (theirs.argmax(1) == exact.argmax(1)).mean() > 0.8


def same_ids(tokenizer, tmp_path, texts=TEXTS):
    """Token ids of both on `texts`, by way of a model that embeds that many tokens."""
    model = tiny_model("llama", tokenizer=tokenizer, vocab_size=len(tokenizer))
    engine = open_file(saved(model, tmp_path))
    for text in texts:
        assert engine.tokenize(text.encode(), special=True) == tokenizer(text)["input_ids"], text


def byte_level(cut, *, ignore_merges=False):
    """BPE over bytes whose merges reach across words, so that where a text is cut shows in the ids.

    The last merges are taken away, so that their tokens are only found as whole words, by who looks for these.
    """
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1500, initial_alphabet=alphabet, special_tokens=["<s>", "</s>"])
    tokenizer.train_from_iterator([*TEXTS * 10, *HELD_OUT[:5]], trainer)
    tokenizer.pre_tokenizer = cut
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    spec = json.loads(tokenizer.to_str())
    spec["model"]["merges"] = spec["model"]["merges"][:-300]
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def split(pattern):
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def digits():
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


@pytest.mark.parametrize(
    ("cut", "ignore_merges"),
    [
        (lambda: pre_tokenizers.ByteLevel(add_prefix_space=False), False),
        (digits, False),
        (lambda: split(LLAMA3), True),
        (lambda: split(LLAMA3), False),
        (lambda: split(QWEN2), False),
    ],
    ids=["gpt-2", "smollm", "llama-bpe", "smaug-bpe", "qwen2"],
)
def test_every_rule_cuts_words_alike(cut, ignore_merges, tmp_path):
    same_ids(byte_level(cut(), ignore_merges=ignore_merges), tmp_path)


def test_special_and_added_tokens_are_found_in_a_text(tmp_path):
    tokenizer = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>"]})
    tokenizer.add_tokens([AddedToken("<think>", normalized=False)])
    same_ids(tokenizer, tmp_path, ["<|user|>Hello <think> there</s>", "a<think>b"])


def sentencepiece(**changes):
    """BPE with a piece for every byte, trained on whole lines as SentencePiece does on words with their space."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    lines = ["▁" + line.replace(" ", "▁") for line in HELD_OUT]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=700, special_tokens=pieces))
    tokenizer.pre_tokenizer = None
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def replace(*, prepend):
    spaces = normalizers.Replace(" ", "▁")
    return normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prepend else spaces


def test_sentencepiece_with_and_without_a_space_before(tmp_path):
    same_ids(sentencepiece(normalizer=replace(prepend=True)), tmp_path)
    same_ids(sentencepiece(normalizer=replace(prepend=False)), tmp_path)
    first = sentencepiece(pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="first", split=False))
    same_ids(first, tmp_path, [text for text in TEXTS if text[0] != " "])
