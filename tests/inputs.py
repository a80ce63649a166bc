"""Bad and odd inputs, a line each, with the exit code of the command line and what the sentence names."""

import gzip
import io
import json
import tarfile
import zipfile

import numpy as np
import pandas as pd
import torch
from architectures import make_tokenizer, tiny_model
from safetensors.torch import load_file, save_file

from numprune import InputError

STORY = "the cat and the dog sat on a mat and then the hen ran to the barn. " * 4
OK, BAD_INPUT, CANNOT_LOAD = 0, 2, 3


def answered(ask):
    """What a call returns; None where it was refused in one sentence."""
    try:
        return ask()
    except InputError as error:
        refusal = str(error)
    assert refusal.endswith(".")
    return None


def rows(*given):
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in given).encode()


def packed(data):
    return gzip.compress(data)


def archive(kind):
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w") as file:
            file.writestr("a.txt", STORY)
    else:
        with tarfile.open(fileobj=buffer, mode="w") as file:
            file.addfile(tarfile.TarInfo("a.txt"), io.BytesIO())
    return buffer.getvalue()


def parquet(**columns):
    buffer = io.BytesIO()
    pd.DataFrame(columns).to_parquet(buffer)
    return buffer.getvalue()


def array():
    buffer = io.BytesIO()
    np.save(buffer, np.arange(5))
    return buffer.getvalue()


def tensors():
    from safetensors.torch import save

    return save({"a": torch.zeros(2)})


CHAT = [{"role": "user", "content": STORY}, {"role": "assistant", "content": STORY}]
TEXTS = [
    # name, content, flags, exit code, what is said
    ("plain.txt", STORY.encode(), [], OK, ""),
    ("bom.txt", b"\xef\xbb\xbf" + STORY.encode(), [], OK, ""),
    ("wide.txt", STORY.encode("utf-16"), [], OK, ""),
    ("wide-be.txt", b"\xfe\xff" + STORY.encode("utf-16-be"), [], OK, ""),
    ("crlf.txt", STORY.replace(". ", ".\r\n").encode(), [], OK, ""),
    ("UPPER.TXT", STORY.encode(), [], OK, ""),
    ("no suffix", STORY.encode(), [], OK, ""),
    ("wiki.test.raw", STORY.encode(), [], OK, ""),
    ("notes.md", STORY.encode(), [], OK, ""),
    ("a b,c=2.txt", STORY.encode(), [], OK, ""),
    ("packed.txt.gz", packed(STORY.encode()), [], OK, ""),
    ("packed, not called so.txt", packed(STORY.encode()), [], OK, ""),
    ("rows.jsonl", rows({"text": STORY}), [], OK, ""),
    ("rows.JSONL", rows({"text": STORY}), [], OK, ""),
    ("bom.jsonl", b"\xef\xbb\xbf" + rows({"text": STORY}), [], OK, ""),
    ("rows.jsonl.gz", packed(rows({"text": STORY})), [], OK, ""),
    ("rows.ndjson", rows({"text": STORY}), [], OK, ""),
    ("rows.json", json.dumps([{"text": STORY}]).encode(), [], OK, ""),
    ("lines.json", rows({"text": STORY}, {"text": STORY}), [], OK, ""),
    ("nested.json", json.dumps({"version": "1", "data": [{"text": STORY}]}).encode(), [], OK, ""),
    ("one.json", json.dumps({"text": STORY}).encode(), [], OK, ""),
    ("strings.json", json.dumps([STORY, STORY]).encode(), [], OK, ""),
    ("rows.csv", f'id,text\n1,"{STORY}"\n'.encode(), [], OK, ""),
    ("rows.CSV.GZ", packed(f'id,text\n1,"{STORY}"\n'.encode()), [], OK, ""),
    ("semicolon.csv", f'id;text\n1;"{STORY}"\n'.encode(), [], OK, ""),
    ("rows.tsv", f"id\ttext\n1\t{STORY}\n".encode(), [], OK, ""),
    ("rows.parquet", parquet(text=[STORY]), [], OK, ""),
    ("rows.Parquet", parquet(messages=[CHAT]), [], OK, ""),
    ("chat.jsonl", rows({"messages": CHAT}), [], OK, ""),
    ("share.jsonl", rows({"conversations": [{"from": "human", "value": STORY}]}), [], OK, ""),
    ("pair.jsonl", rows({"prompt": "the", "completion": STORY}), [], OK, ""),
    ("task.jsonl", rows({"instruction": "do", "input": "", "output": STORY}), [], OK, ""),
    ("content.jsonl", rows({"content": STORY, "url": "x"}), [], OK, ""),
    ("other.jsonl", rows({"story": STORY, "id": "x"}), ["--text-column", "story"], OK, ""),
    ("quoted.txt", f'"{STORY}"'.encode(), [], OK, ""),
    ("braces.txt", f"{{{STORY}}}".encode(), [], OK, ""),
    ("other.jsonl", rows({"story": STORY, "id": "x"}), [], BAD_INPUT, "Line 1 of {path} has no column of text"),
    (
        "keys.jsonl",
        rows({"story": STORY, "id": "x"}),
        [],
        BAD_INPUT,
        "its keys are story, id: name one with --text-col",
    ),
    ("column.csv", b"a,b\n1,2\n", [], BAD_INPUT, "Row 1 of {path} has no column of text that is known"),
    ("column.csv", b"a,b\n1,2\n", ["--text-column", "c"], BAD_INPUT, "has no column c; its keys are a, b"),
    ("number.jsonl", rows({"text": 7}), [], BAD_INPUT, "Line 1 of {path}, column text, is a number, not a string"),
    ("null.jsonl", rows({"text": STORY}, {"text": None}), [], BAD_INPUT, "Line 2 of {path}, column text, is null"),
    ("list.jsonl", b"[1, 2]", [], BAD_INPUT, "Line 1 of {path} is a list, where an object"),
    ("cut.jsonl", rows({"text": STORY})[:-5], [], BAD_INPUT, "Line 1 of {path} is not JSON"),
    ("cut.json", json.dumps([{"text": STORY}]).encode()[:-5], [], BAD_INPUT, "{path} is not JSON"),
    ("seven.json", b"7", [], BAD_INPUT, "{path} holds int, not rows"),
    ("turns.jsonl", rows({"messages": [{"speaker": "x"}]}), [], BAD_INPUT, "a turn with the keys speaker"),
    ("empty turns.jsonl", rows({"messages": []}), [], BAD_INPUT, "column messages, is a list, not a string"),
    (
        "lines.txt",
        rows({"text": STORY}, {"text": "b"}),
        [],
        BAD_INPUT,
        "{path} looks like JSON; give its name the suffix .jsonl",
    ),
    ("array.txt", json.dumps([STORY], indent=1).encode(), [], BAD_INPUT, "{path} looks like JSON"),
    ("page.txt", b"<!DOCTYPE html><html>x</html>", [], BAD_INPUT, "{path} looks like HTML"),
    ("page.html", b"<html><body>x</body></html>", [], BAD_INPUT, "{path} looks like HTML or XML"),
    ("feed.xml", b"<?xml version='1.0'?><a/>", [], BAD_INPUT, "{path} looks like HTML or XML"),
    ("empty.txt", b"", [], BAD_INPUT, "{path} holds no text"),
    ("spaces.txt", b" \n\t\n", [], BAD_INPUT, "{path} holds no text"),
    ("empty.csv", b"", [], BAD_INPUT, "{path} holds no text"),
    ("header.csv", b"text\n", [], BAD_INPUT, "{path} holds no text"),
    ("empty.json", b"[]", [], BAD_INPUT, "{path} holds no text"),
    ("empty.parquet", parquet(text=[]), [], BAD_INPUT, "{path} holds no text"),
    ("short.txt", b"the", [], BAD_INPUT, "The calibration text has 1 tokens, one sequence needs 8"),
    ("latin.txt", "café".encode("latin-1"), [], BAD_INPUT, "{path} cannot be read as text (it is not UTF-8 text)"),
    ("binary.txt", b"a\0b" * 9, [], BAD_INPUT, "{path} cannot be read as text"),
    ("paper.pdf", b"%PDF-1.7 x", [], BAD_INPUT, "it looks like a PDF"),
    ("report.docx", archive("zip"), [], BAD_INPUT, "it looks like a zip archive or an Office document"),
    ("data.zip", archive("zip"), [], BAD_INPUT, "it looks like a zip archive"),
    ("data.tar", archive("tar"), [], BAD_INPUT, "it looks like a tar archive"),
    ("data.tar.gz", packed(archive("tar")), [], BAD_INPUT, "it looks like a tar archive"),
    ("data.jsonl.zst", b"\x28\xb5\x2f\xfd...", [], BAD_INPUT, "it looks like a Zstandard file"),
    ("data.jsonl.bz2", b"BZh91AY", [], BAD_INPUT, "it looks like a bzip2 file"),
    ("data.jsonl.xz", b"\xfd7zXZ\0\0", [], BAD_INPUT, "it looks like an xz file"),
    ("photo.png", b"\x89PNG\r\n\x1a\n", [], BAD_INPUT, "it looks like a PNG image"),
    ("photo.jpg", b"\xff\xd8\xff\xe0", [], BAD_INPUT, "it looks like a JPEG image"),
    ("x.npy", array(), [], BAD_INPUT, "it looks like a NumPy array"),
    ("x.pkl", b"\x80\x04\x95", [], BAD_INPUT, "it looks like a pickle"),
    ("x.arrow", b"ARROW1\0\0", [], BAD_INPUT, "it looks like an Arrow file"),
    ("x.db", b"SQLite format 3\0", [], BAD_INPUT, "it looks like an SQLite database"),
    ("model.safetensors", tensors(), [], BAD_INPUT, "it looks like a safetensors file"),
    ("model.gguf", b"GGUF\x03\0\0\0", [], BAD_INPUT, "it looks like a GGUF model"),
    ("x.parquet", b"text\nabc", [], BAD_INPUT, "{path} is no Parquet file, whatever its name"),
    ("cut.parquet", parquet(text=[STORY])[:-9], [], BAD_INPUT, "{path} is a damaged Parquet file"),
    ("cut.txt.gz", packed(STORY.encode())[:-9], [], BAD_INPUT, "{path} is a damaged gzip file"),
    ("ragged.csv", b"text\na,b\nc,d,e\n", [], BAD_INPUT, "{path} is not a table with a line of names"),
]


NAMES = [
    # calibration as a word, exit code, what is said
    ("no-such-file.txt", BAD_INPUT, "'no-such-file.txt' is neither a file nor a dataset name"),
    ("/no/such/file.jsonl", BAD_INPUT, "neither a file nor a dataset name; give a file (txt, json, jsonl, csv"),
    ("wikitext", BAD_INPUT, "one of wikitext2, c4, ptb, tinystories"),
    ("nobody/no-such-data", BAD_INPUT, "There is no file or folder nobody/no-such-data here"),
    ("nobody/no-such-data:a:b:c:d", BAD_INPUT, "has more than OWNER/NAME:CONFIG:SPLIT:COLUMN"),
    ("{folder}/empty", BAD_INPUT, "has no file of text (txt, json, jsonl"),
    ("{folder}/pictures", BAD_INPUT, "it has a.png"),
    ("{folder}/arrow", BAD_INPUT, "was written by save_to_disk of datasets"),
    ("{folder}/*.nothing", BAD_INPUT, "No file matches {folder}/*.nothing"),
    ("{folder}/texts", OK, ""),
    ("{folder}/texts/*.txt", OK, ""),
    ("{folder}/texts/**/*.jsonl", OK, ""),
    ("{folder}/texts/a.txt,self", OK, "Calibration sequences: 1 of a.txt"),
    ("{folder}/texts/a.txt=3,{folder}/texts/b.jsonl=1", OK, "Calibration sequences:"),
    ("{folder}/texts/a.txt,no-such", BAD_INPUT, "'no-such' is neither"),
    ("", BAD_INPUT, "is neither a file nor a dataset name"),
    ("a\nb", BAD_INPUT, "is neither a file nor a dataset name"),
    ("x" * 3000, BAD_INPUT, "is neither a file nor a dataset name"),
]


def weights(change):
    """A change of the tensors of a folder."""

    def edit(folder):
        state = load_file(folder / "model.safetensors")
        change(state)
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})

    return edit


def config(**changes):
    def edit(folder):
        given = {**json.loads((folder / "config.json").read_text()), **changes}
        (folder / "config.json").write_text(json.dumps(given))

    return edit


def file(name, content=b""):
    def edit(folder):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return edit


def without(*names):
    def edit(folder):
        for name in names:
            (folder / name).unlink()

    return edit


def both(*edits):
    def edit(folder):
        for each in edits:
            each(folder)

    return edit


def stray(folder):
    zeros = {key: torch.zeros_like(value) for key, value in load_file(folder / "model.safetensors").items()}
    save_file(zeros, folder / "model_old.safetensors")


def tokenizer(**changes):
    def edit(folder):
        made = make_tokenizer()
        made.add_special_tokens(changes.get("special", {}))
        made.add_tokens(changes.get("tokens", []))
        made.save_pretrained(folder)

    return edit


UP = "model.layers.1.mlp.up_proj"
LORA = json.dumps({"base_model_name_or_path": "owner/base"})
INDEX = json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}})
OUTSIDE = json.dumps({"weight_map": {"a": "../other.safetensors"}})


def replaced(**parts):
    def change(state):
        del state[f"{UP}.weight"]
        state.update({f"{UP}.{name}": value for name, value in parts.items()})

    return weights(change)


INT, ONES = torch.zeros(4, 24).int(), torch.ones(1, 24)
MODELS = [
    # what is done to the folder, what the case is called, exit code, what is said
    (lambda folder: None, "as it is", OK, ""),
    (stray, "a stray file of weights", OK, "model_old.safetensors in {folder} was not read"),
    (
        weights(lambda state: state.update({"lm_head.weight": torch.randn(112, 32)})),
        "untied",
        OK,
        "of its own, so it is",
    ),
    (config(tie_word_embeddings=False), "tied", OK, "no lm_head.weight, so the embedding is its output layer"),
    (config(dtype="bfloat16"), "another dtype", OK, ""),
    (config(quantization_config={"quant_method": "bitsandbytes"}), "flag", OK, "but they are plain numbers"),
    (config(auto_map={"AutoModelForCausalLM": "x--modeling.X"}), "foreign code", OK, ""),
    (config(eos_token_id=[1, 2, 3]), "three end tokens", OK, ""),
    (config(bos_token_id=None), "no beginning", OK, ""),
    (file("adapter_config.json", LORA), "an adapter's leftover", OK, ""),
    (tokenizer(special={"pad_token": "<pad>"}, tokens=[f"w{i}" for i in range(8)]), "added ids", OK, "1 added tokens"),
    (file("model.safetensors.index.json", INDEX), "a stale index", OK, "model.safetensors was read instead"),
    (file("training_args.bin", b"x"), "leftovers of training", OK, ""),
    (file("generation_config.json", '{"temperature": 0.6}'), "contradiction", OK, "do_sample was set to true"),
    (config(layer_inter_size=[24, 16]), "keys of another tool", OK, ""),
    (file("config.json", b"\xef\xbb\xbf{}"), "config with a mark", CANNOT_LOAD, "config"),
    (file("config.json", "{"), "damaged config", CANNOT_LOAD, "config.json"),
    (without("config.json"), "no config", CANNOT_LOAD, "has no config.json"),
    (without("model.safetensors"), "no weights", CANNOT_LOAD, "has no weights"),
    (without("tokenizer.json", "tokenizer_config.json"), "no tokenizer", CANNOT_LOAD, "Cannot load the tokenizer of"),
    (file("tokenizer.json", "{"), "damaged tokenizer", CANNOT_LOAD, "Cannot load the tokenizer of"),
    (file("model.safetensors", b""), "empty weights", CANNOT_LOAD, "damaged or cut short"),
    (
        lambda folder: (folder / "model.safetensors").rename(folder / "weights.safetensors"),
        "other name",
        CANNOT_LOAD,
        "it has weights.safetensors",
    ),
    (both(without("model.safetensors"), file("q4.gguf", b"GGUF")), "gguf beside", CANNOT_LOAD, "it has q4.gguf"),
    (
        both(without("config.json"), file("q4.gguf", b"GGUF")),
        "gguf alone",
        CANNOT_LOAD,
        "give one of them, such as {folder}/q4.gguf",
    ),
    (
        both(without("config.json"), file("params.json", "{}")),
        "Meta's own",
        CANNOT_LOAD,
        "as their authors published them",
    ),
    (both(without("config.json"), file("model_index.json", "{}")), "diffusers", CANNOT_LOAD, "pipeline of diffusers"),
    (
        both(without("config.json"), file("checkpoint-10/config.json", "{}")),
        "one too high",
        CANNOT_LOAD,
        "give {folder}/checkpoint-10",
    ),
    (
        both(without("model.safetensors"), file("model.safetensors.index.json", INDEX)),
        "a missing shard",
        CANNOT_LOAD,
        "model-00001-of-00002.safetensors, which",
    ),
    (
        file("model.safetensors.index.json", OUTSIDE),
        "an index outside",
        CANNOT_LOAD,
        "names ../other.safetensors, outside",
    ),
    (
        file("model.safetensors.index.json", "{}"),
        "a damaged index",
        CANNOT_LOAD,
        "model.safetensors.index.json of {folder} is damaged",
    ),
    (
        both(file("adapter_config.json", LORA), file("adapter_model.safetensors", b"x")),
        "LoRA beside",
        CANNOT_LOAD,
        "adapter (LoRA), which has to be merged into its base model owner/base",
    ),
    (
        both(without("config.json", "model.safetensors"), file("adapter_config.json", LORA)),
        "LoRA alone",
        CANNOT_LOAD,
        ["merged", "owner/base", "merge_and_unload"],
    ),
    (replaced(**{"base_layer.weight": torch.ones(24, 32)}), "LoRA inside", CANNOT_LOAD, f"{UP}.base_layer.weight"),
    (replaced(qweight=INT, qzeros=INT.clone(), scales=ONES), "GPTQ", CANNOT_LOAD, "quantised (GPTQ)"),
    (replaced(qweight=torch.zeros(32, 3).int(), scales=ONES), "AWQ", CANNOT_LOAD, "quantised (AWQ)"),
    (replaced(weight=INT, scales=ONES, biases=ONES.clone()), "MLX", CANNOT_LOAD, "quantised (MLX)"),
    (replaced(weight=INT.byte(), absmax=ONES), "bitsandbytes", CANNOT_LOAD, "quantised (bitsandbytes)"),
    (replaced(weight=torch.zeros(24, 32).to(torch.float8_e4m3fn)), "FP8", CANNOT_LOAD, "quantised (FP8)"),
    (replaced(weight=torch.zeros(24, 32).to(torch.int8)), "INT8", CANNOT_LOAD, "quantised (I8 weights)"),
    (
        both(file("model.safetensors", b"x"), config(quantization_config={"quant_method": "awq"})),
        "flag alone",
        CANNOT_LOAD,
        "quantised (awq)",
    ),
    (replaced(), "a missing tensor", CANNOT_LOAD, f"are missing (such as {UP}.weight)"),
    (replaced(weight=torch.zeros(16, 32)), "a narrower tensor", CANNOT_LOAD, "16 x 32 instead of 24 x 32"),
    (config(intermediate_size=16), "a smaller config", CANNOT_LOAD, "another shape than the config says"),
    (config(num_hidden_layers=3), "more layers said", CANNOT_LOAD, "are missing (such as model.layers.2"),
    (
        config(model_type="smollm3", no_rope_layers=[1]),
        "a short list",
        CANNOT_LOAD,
        "1 entries in no_rope_layers but num_hidden_layers is 2",
    ),
    (
        config(layer_types=["full_attention"] * 5),
        "a long list",
        CANNOT_LOAD,
        "5 entries in layer_types but num_hidden_layers is 2",
    ),
    (config(model_type="mistral", layer_types=["full_attention"] * 2), "Mistral with layer_types", OK, ""),
    (
        config(model_type="mixtral", num_local_experts=8, architectures=["MixtralForCausalLM"]),
        "MoE",
        CANNOT_LOAD,
        "MixtralForCausalLM is not supported: it is a mixture of experts",
    ),
    (
        config(model_type="exaone4", architectures=["Exaone4ForCausalLM"], sliding_window_pattern="LLLG"),
        "EXAONE-4",
        CANNOT_LOAD,
        "Exaone4ForCausalLM (model_type 'exaone4') has no adapter",
    ),
    (
        config(model_type="t5", is_encoder_decoder=True, architectures=["T5Model"]),
        "T5",
        CANNOT_LOAD,
        "T5Model is not supported: it is an encoder-decoder",
    ),
    (config(model_type="no-such-type"), "unknown type", CANNOT_LOAD, "no-such-type"),
    (config(hidden_size="big"), "a word for a number", CANNOT_LOAD, "hidden_size"),
    (config(vocab_size=60), "a smaller vocabulary", CANNOT_LOAD, "112 x 32 instead of 60 x 32"),
    (config(rope_parameters={"rope_type": "nonsense", "rope_theta": 1e4}), "an unknown rope", CANNOT_LOAD, "nonsense"),
]


PLACES = [
    # a model as a word, exit code, what is said
    ("no-such-model", "'no-such-model' is neither an embedded model (tiny-images, tiny-stories)"),
    ("models/foo", "Cannot load models/foo: there is no such file or folder here"),
    ("./models/foo", "nor an existing folder nor a hub id"),
    ("/no/such/folder", "nor an existing folder nor a hub id"),
    ("missing.gguf", "There is no file missing.gguf; give a GGUF file"),
    ("missing.pt", "There is no file missing.pt; give a .pt file that LlamaGen published"),
    ("{folder}/a.txt", "is a file, not a model folder"),
    ("{folder}/a.safetensors", "is a file, not a model folder"),
    ("{folder}/text.gguf", "is no GGUF file, whatever its name"),
    ("{folder}/cut.gguf", "is a damaged GGUF file or one cut short"),
    ("{folder}/a-00001-of-00003.gguf", "is one part of a split file"),
    ("{folder}/c2i_B_256.pt", "is a damaged pickle"),
    ("{folder}/empty", "has no config.json"),
    ("nobody/nothing:a.gguf", "Cannot load nobody/nothing:a.gguf: there is no such file or folder here"),
    ("", "is neither an embedded model"),
    ("x" * 3000, "is neither an embedded model"),
    ("a\nb", "is neither an embedded model"),
]


def recipe(**changes):
    """The text of a recipe with some entries changed."""
    return json.dumps({"version": 3, **changes}).encode()


RECIPES = [
    # what the file holds, what the case is called, what is said
    (b"", "an empty file", "The recipe is not JSON"),
    (b"ratio: 0.3", "YAML", "The recipe is not JSON"),
    (b'{"version": 3,', "cut short", "The recipe is not JSON"),
    (b"\xff\xfe\x00", "no text", "cannot be read"),
    (b"[1, 2]", "a list", "A recipe is a JSON object"),
    (b'{"a":' * 100_000, "deeper than any", "it is nested too deep"),
    (b'{"version": 3, "ratio": ' + b"1" * 5000 + b"}", "a number of 5000 digits", "The recipe is not JSON"),
    (b'{"ratio": 0.3}', "no version", "The recipe has version None"),
    (recipe(version=99), "a later version", "The recipe has version 99"),
    (recipe(version="3"), "a version in words", "The recipe has version 3"),
    (recipe(sparsity=0.3), "another tool's key", "unknown key 'sparsity'"),
    (recipe(ratio="30%"), "a ratio in words", "'ratio' in the recipe is '30%'"),
    (recipe(ratio=float("nan")), "a ratio that is no number", "ratio is nan"),
    (recipe(ratio=30), "a ratio in percent", "ratio is 30"),
    (recipe(ratios={"mlp.3": 0.5}), "a module spelled otherwise", "mlp.3"),
    (recipe(ratios={"0.mlp": None}), "a ratio of a module that is null", "ratio is None"),
    (recipe(keep={"0.mlp": 3}), "units that are no list", "keep of 0.mlp is 3"),
    (recipe(keep={"0.mlp": [1]}, prune={"0.mlp": [1]}), "a unit kept and removed", "both forced to stay and forced"),
    (recipe(calibration="c4"), "a calibration as a word", "must be an object with data"),
    (recipe(calibration={"samples": 2.5}), "half a sample", "'samples' in the recipe's calibration is 2.5"),
    (recipe(scorer="magic"), "a scorer nobody knows", "magic"),
    (recipe(fingerprint="0" * 16), "another model's", "The recipe was made for"),
    (recipe(keep={"9.mlp": [0]}), "a plan of a deeper model", "names 9.mlp, which"),
    (recipe(prune={"0.mlp": [999]}), "a plan of a wider model", "outside 0 to"),
]


def scores(**changes):
    """A file of scores whose metadata is changed."""
    from safetensors.numpy import save

    return save({"newton/0.mlp": np.ones(3)}, {"format": "numprune scores 2", "about": "{}", **changes})


SCORES = [
    # what the file holds, what the case is called, what is said
    (tensors(), "weights", "holds no scores that this numprune reads"),
    (scores(format="numprune scores 9"), "a later format", "holds no scores that this numprune reads"),
    (scores(about="{"), "a description that is no JSON", "cannot be read"),
    (scores(about="[]"), "a description of another kind", "cannot be read"),
    (scores(about="[" * 100_000), "a description deeper than any", "cannot be read"),
    (scores(), "a description of nothing", "cannot be read"),
    (b"\xff" * 8 + b"{}", "a header longer than the file", "cannot be read"),
]


def write_named(folder):
    """What the calibrations of NAMES find."""
    for made in ("empty", "pictures", "arrow", "texts/sub"):
        (folder / made).mkdir(parents=True)
    (folder / "pictures/a.png").write_bytes(b"\x89PNG")
    (folder / "arrow/data-00000-of-00001.arrow").write_bytes(b"ARROW1")
    (folder / "arrow/state.json").write_text("{}")
    (folder / "texts/a.txt").write_text(STORY)
    for made in ("texts/b.jsonl", "texts/sub/c.jsonl"):
        (folder / made).write_bytes(rows({"text": STORY}))


def write_places(folder):
    """What the models of PLACES find."""
    (folder / "empty").mkdir()
    for made, content in (
        ("a.txt", b"x"),
        ("a.safetensors", tensors()),
        ("text.gguf", b"not one"),
        ("cut.gguf", b"GGUF\x03\0\0\0"),
        ("a-00001-of-00003.gguf", b"GGUF\x03\0\0\0"),
        ("c2i_B_256.pt", b"not one"),
    ):
        (folder / made).write_bytes(content)


def save_tiny(folder):
    """A tiny checkpoint, which MODELS changes."""
    model = tiny_model("llama-gqa-tied", tokenizer=make_tokenizer())
    model.module.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)


def words(says, folder):
    """What a sentence must hold, with the path that was given."""
    return [word.replace("{folder}", str(folder)) for word in ([says] if isinstance(says, str) else says)]
