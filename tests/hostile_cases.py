"""Ways in which the folder of a saved model can be damaged or forged, each with what the refusal has to say."""

import json
import math
import os
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from celler._utils._digest import digest_of
from celler.model._folder import CONFIG, WEIGHTS

Change = Callable[[Path], None]


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / CONFIG).read_text("utf-8"))


def write_config(folder: Path, config: Any) -> None:
    """Write a config with its own digest, as a forger would."""
    if isinstance(config, dict) and isinstance(config.get("digest"), str):
        config = config | {"digest": digest_of({name: value for name, value in config.items() if name != "digest"})}
    (folder / CONFIG).write_text(json.dumps(config), "utf-8")


def put(place: str, value: Any) -> Change:
    """Put a value at a dotted place of the config; a function gets what stands there."""

    def change(folder: Path) -> None:
        config = config_of(folder)
        *way, last = place.split(".")
        within = config
        for name in way:
            within = within[name]
        within[last] = value(within[last]) if callable(value) else value
        write_config(folder, config)

    return change


def drop(place: str) -> Change:
    def change(folder: Path) -> None:
        config = config_of(folder)
        *way, last = place.split(".")
        within = config
        for name in way:
            within = within[name]
        del within[last]
        write_config(folder, config)

    return change


def text(old: str, new: str) -> Change:
    """Replace a text of the config, which need not be JSON afterwards."""

    def change(folder: Path) -> None:
        before = (folder / CONFIG).read_text("utf-8")
        assert old in before
        (folder / CONFIG).write_text(before.replace(old, new, 1), "utf-8")

    return change


def raw(name: str, data: bytes) -> Change:
    return lambda folder: (folder / name).write_bytes(data) and None


def signed(folder: Path, data: bytes) -> None:
    """Write the arrays with a config that has their size and digest, as a forger would."""
    (folder / WEIGHTS).write_bytes(data)
    config = config_of(folder)
    config["tensors"] |= {"size": len(data), "sha256": sha256(data).hexdigest()}
    write_config(folder, config)


def arrays(change_arrays: Callable[[dict[str, np.ndarray]], Any]) -> Change:
    """Change the arrays by name, in a file that is safetensors and fits its config's digest."""

    def change(folder: Path) -> None:
        found = load_file(folder / WEIGHTS)
        change_arrays(found)
        save_file(found, folder / "forged")
        signed(folder, (folder / "forged").read_bytes())

    return change


def array(name: str, change_array: Callable[[np.ndarray], np.ndarray]) -> Change:
    def change_arrays(found: dict[str, np.ndarray]) -> None:
        found[name] = np.ascontiguousarray(change_array(found[name].copy()))

    return arrays(change_arrays)


def value(name: str, place: Any, new: float) -> Change:
    def change_array(values: np.ndarray) -> np.ndarray:
        values[place] = new
        return values

    return array(name, change_array)


def header(change_header: Callable[[dict[str, Any]], Any]) -> Change:
    """Change the header alone: the data stay, and the digest fits."""

    def change(folder: Path) -> None:
        data = (folder / WEIGHTS).read_bytes()
        n = int.from_bytes(data[:8], "little")
        entries = json.loads(data[8 : 8 + n])
        made = change_header(entries)
        written = made if isinstance(made, bytes) else json.dumps(entries).encode()
        signed(folder, len(written).to_bytes(8, "little") + written + data[8 + n :])

    return change


def twice(entries: dict[str, Any]) -> bytes:
    name = next(iter(entries))
    return json.dumps(entries).encode()[:-1] + f", {json.dumps(name)}: {json.dumps(entries[name])}}}".encode()


def entry(name: str, **new: Any) -> Change:
    return header(lambda entries: entries[name].update(new))


def swap(one: str, other: str) -> Change:
    """Let two arrays of a size overlap."""
    return header(lambda entries: entries[one].update(data_offsets=entries[other]["data_offsets"]))


def cut(name: str, share: float) -> Change:
    def change(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(share * len(data))])

    return change


def flip(folder: Path) -> None:
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / WEIGHTS).write_bytes(data)


def sparse(folder: Path) -> None:
    """A file of 20 GB that takes no space on disk."""
    with (folder / WEIGHTS).open("r+b") as file:
        file.truncate(20 * 2**30)
    put("tensors.size", 20 * 2**30)(folder)


def link(name: str) -> Change:
    def change(folder: Path) -> None:
        outside = folder.parent / f"outside-{name}"
        (folder / name).rename(outside)
        (folder / name).symlink_to(outside)

    return change


def dangling(folder: Path) -> None:
    (folder / CONFIG).unlink()
    (folder / CONFIG).symlink_to(folder / "nowhere.json")


def directory(name: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return change


def pipe(folder: Path) -> None:
    (folder / CONFIG).unlink()
    os.mkfifo(folder / CONFIG)


def remove(name: str) -> Change:
    return lambda folder: (folder / name).unlink()


def backwards(names: list[str]) -> list[str]:
    return names[::-1]


def with_first(new: Any) -> Callable[[list[Any]], list[Any]]:
    return lambda values: [new, *values[1:]]


def forged_base(folder: Path) -> None:
    sizes = {"d_model": 33, "n_latents": 6, "n_layers": 1, "n_heads": 3}
    base = {"name": "b", "n_known": 1, "organism": "human", "sizes": sizes, "n_profiles": 0, "n_types": 0}
    put("registry.celler.base", base)(folder)
    put("init_params.encoder", "base")(folder)


GENE = "weights.encoder.gene"
#: Name: the change, and what the message says.
FILES_OF = {
    "no arrays": (remove(WEIGHTS), r"model\.safetensors does not exist"),
    "config is a folder": (directory(CONFIG), r"config\.json is not a file but a folder"),
    "arrays are a folder": (directory(WEIGHTS), r"model\.safetensors is not a file but a folder"),
    "config is a pipe": (pipe, r"config\.json is not a file but a folder, a device"),
    "config links out": (link(CONFIG), r"config\.json is a link to .*outside the folder; copy"),
    "arrays link out": (link(WEIGHTS), r"model\.safetensors is a link to .*outside the folder; copy"),
    "config links to nothing": (dangling, r"config\.json is not a file but a folder, a device or a link to nothing"),
    "config is empty": (raw(CONFIG, b""), r"config\.json is damaged: it is not JSON"),
    "config is cut": (cut(CONFIG, 0.5), r"config\.json is damaged: it is not JSON"),
    "arrays are cut": (cut(WEIGHTS, 0.9), r"model\.safetensors has .* bytes; config\.json says .*cut short"),
    "arrays are empty": (raw(WEIGHTS, b""), r"model\.safetensors has 0 bytes; config\.json says"),
    "a bit is flipped": (flip, r"model\.safetensors has another SHA-256 than config\.json says"),
    "arrays are huge": (sparse, r"has 21,474,836,480 bytes; at most 17,179,869,184 are read"),
    "config is huge": (raw(CONFIG, b" " * (2**26 + 1)), r"config\.json has 67,108,865 bytes; at most 67,108,864"),
}
JSON = {
    "not UTF-8": (raw(CONFIG, b'{"format": "\xff"}'), "is damaged: it is not JSON .*can't decode"),
    "half a surrogate": (text('"type 0"', r'"\ud800"'), "is damaged: it is not JSON .*surrogates"),
    "nested too deeply": (raw(CONFIG, b"[" * 100_000), r"config\.json is nested too deeply"),
    "key stands twice": (text('"format":', '"format": "celler", "format":'), "the key 'format' stands twice"),
    "NaN": (text('"dropout_rate": 0.3', '"dropout_rate": NaN'), "NaN is no JSON"),
    "Infinity": (text('"dropout_rate": 0.3', '"dropout_rate": -Infinity'), "-Infinity is no JSON"),
    "overflow": (
        text('"dropout_rate": 0.3', '"dropout_rate": 1e999'),
        "init_params.dropout_rate is inf; a number of at",
    ),
    "digits without end": (text('"seed": 0', '"seed": ' + "9" * 5000), "is damaged: it is not JSON"),
    "a list": (raw(CONFIG, b"[1]"), "is no config of a Celler model: its format is .1.*Pass the folder"),
    "of transformers": (raw(CONFIG, b'{"model_type": "bert"}'), "is no config of a Celler model: its format is None"),
    "later format": (put("format_version", 3), "in format 3; this version reads up to 2. Upgrade celler"),
    "format is text": (put("format_version", "2"), "format_version is '2'; 2 is needed"),
    "format is true": (put("format_version", True), "format_version is True; 2 is needed"),
}
CONFIGS = {
    "lacks a part": (drop("registry"), r"config\.json lacks registry"),
    "unknown part": (put("code", "import os"), "has 'code', which Celler does not know"),
    "weights in the config": (put("weights", {"a": 1}), "weights is {'a': 1}; an empty object"),
    "path of the arrays": (put("tensors.file", "../../secret"), r"tensors.file is '\.\./\.\./secret'; 'model.saf"),
    "size below 0": (put("tensors.size", -1), "tensors.size is -1; a whole number of at least 8"),
    "digest": (put("tensors.sha256", "abc"), "tensors.sha256 is 'abc'; 64 hexadecimal digits"),
    "another class": (put("registry.model_name", "SCVI"), "registry.model_name is 'SCVI'"),
    "fields": (put("registry.field_registries", {"X": {}}), "field_registries is .*an empty object"),
    "setup": (put("registry.setup_args.labels_key", ["a"]), "setup_args.labels_key is .'a'.; text, or null"),
    "unknown setup": (put("registry.setup_args.hook", "a"), "has 'registry.setup_args.hook', which Celler does not"),
    "parents of the setup": (put("registry.setup_args.parents", {"a": 1}), "setup_args.parents is .*object of texts"),
    "no genes": (put("registry.celler.gene_names", []), "gene_names is .*of at least one gene"),
    "gene twice": (put("registry.celler.gene_names", with_first("gene 1")), "gene_names is .*different names"),
    "empty gene": (put("registry.celler.gene_names", with_first("")), "gene_names is .*none of them empty"),
    "gene is a number": (put("registry.celler.gene_names", with_first(7)), "gene_names is .*different names"),
    "classes unsorted": (put("registry.celler.classes", backwards), "classes is .*a sorted list of different"),
    "class twice": (put("registry.celler.classes", with_first("type 1")), "classes is .*a sorted list of different"),
    "class is null": (put("registry.celler.classes", with_first(None)), "classes is .*a sorted list of different"),
    "parent short": (put("registry.celler.parents", ["a"]), "parents is .'a'.; a parent for each of 4 classes"),
    "parents in a circle": (
        put("registry.celler.parents", ["type 1", "type 0", "type 2", "type 3"]),
        "contradicts itself: the parents go round in a cycle",
    ),
    "base without sizes": (
        put(
            "registry.celler.base",
            {"name": "b", "n_known": 1, "organism": "human", "sizes": {}, "n_profiles": 0, "n_types": 0},
        ),
        "lacks registry.celler.base.sizes.d_model",
    ),
    "base of heads that do not fit": (forged_base, "contradicts itself: d_model=32 is not a multiple of n_heads=3"),
    "base is a number": (put("registry.celler.base", 1), "registry.celler.base is 1; an object, or null"),
    "scgpt": (put("registry.celler.scgpt", 1), "celler.scgpt is 1"),
    "encoder without its origin": (put("init_params.encoder", "base"), "celler.base is None; an object, for enc"),
    "unknown encoder": (put("init_params.encoder", "os.system"), "init_params.encoder is 'os.system'; one of"),
    "lacks an argument": (drop("init_params.d_model"), "lacks init_params.d_model"),
    "d_model": (put("init_params.d_model", 10**12), "init_params.d_model is 1000000000000; a whole number.*1,000,000"),
    "d_model is 0": (put("init_params.d_model", 0), "init_params.d_model is 0; a whole number of at least 1"),
    "d_model is a fraction": (put("init_params.d_model", 16.0), "init_params.d_model is 16.0; a whole number"),
    "evidence": (put("init_params.evidence", 1), "init_params.evidence is 1; true or false"),
    "layers without end": (put("init_params.n_layers", 10**9), "n_layers is 1000000000; .*at most 1,000"),
    "bins": (put("init_params.n_bins", 2), "init_params.n_bins is 2; a whole number of at least 3 and at most 256"),
    "dropout": (
        put("init_params.dropout_rate", 1.5),
        "init_params.dropout_rate is 1.5; a number of at least 0",
    ),
    "sizes that contradict": (put("init_params.n_layers", 2), "contradicts itself: n_layers=2 was given with encoder"),
    "temperature 0": (put("fitted.decision.temperature", 0), "decision.temperature is 0; a number above 0"),
    "temperature below 0": (put("fitted.decision.temperature", -1.0), "decision.temperature is -1.0; a number above"),
    "seed": (put("fitted.seed", 0.5), "fitted.seed is 0.5; a whole number"),
    "curves of two lengths": (put("fitted.history.train_loss", [1.0]), "fitted.history is .*of one length"),
    "no curve": (drop("fitted.history.train_loss"), "history.train_loss is None; a number for each epoch"),
    "curve of texts": (
        put("fitted.history.train_loss", lambda curve: ["x"] * len(curve)),
        "history.train_loss is .*a list of numbers",
    ),
    "curve that chose the weights": (
        put("fitted.history.validation_macro_f1", lambda curve: ["NaN"] * len(curve)),
        "history.validation_macro_f1 is .*a finite number of at least 0 for each epoch",
    ),
    "error below 0": (
        put("fitted.history.validation_macro_f1_error", lambda curve: [-1.0] * len(curve)),
        "history.validation_macro_f1_error is .*a finite number of at least 0 for each epoch",
    ),
    "number that no float holds": (
        put("fitted.history.train_loss", lambda curve: [10**400] * len(curve)),
        "history.train_loss is .*a list of numbers",
    ),
    "classes without end": (
        put("registry.celler.classes", [f"{i:06}" for i in range(30_000)]),
        "registry.celler.classes is .*20,000 at most",
    ),
    "hard cells of no class": (
        put("fitted.hard_cells.label", lambda labels: ["type 7"] * len(labels)),
        "hard_cells.label is .*a list of classes",
    ),
    "hard cells of two lengths": (put("fitted.hard_cells.cell", []), "hard_cells is .*columns of one length"),
    "trained without classes": (
        lambda folder: (put("registry.celler.classes", [])(folder), put("registry.celler.parents", [])(folder)),
        "registry.celler.classes is .*a class at least",
    ),
}
HEADERS = {
    "no safetensors": (lambda f: signed(f, b"PK\x03\x04" + b"\xff" * 90), "is no safetensors file: its header would"),
    "only a header": (lambda f: signed(f, b"\x02" + b"\0" * 7 + b"[]"), r"is no safetensors file: its header is \[\]"),
    "header beyond the file": (
        lambda f: signed(f, (2**40).to_bytes(8, "little") + b"{}"),
        "its header would have 1,099,511,627,776 bytes",
    ),
    "header is no JSON": (header(lambda entries: b"{'a'}"), r"safetensors is damaged: it is not JSON"),
    "array stands twice": (header(twice), "safetensors is damaged: .*stands twice"),
    "type unknown": (entry(GENE, dtype="BF16"), "'weights.encoder.gene' is of type 'BF16'"),
    "type is a list": (entry(GENE, dtype=["F32"]), "'weights.encoder.gene' is of type .'F32'."),
    "entry with code": (entry(GENE, code="x"), "'weights.encoder.gene' has the header .*safetensors do not have"),
    "size below 0 in a shape": (entry(GENE, shape=[-80, -16]), "'weights.encoder.gene' has the header"),
    "huge shape": (entry(GENE, shape=[2**40, 2**40]), "of shape .*data_offsets .*bytes are needed"),
    "offsets beyond the file": (entry(GENE, data_offsets=[2**50, 2**50 + 5120]), "starts at byte .* is needed"),
    "three offsets": (entry(GENE, data_offsets=[0, 1, 2]), "'weights.encoder.gene' of shape .*bytes are needed"),
    "arrays overlap": (swap("weights.encoder.norm.weight", "weights.encoder.norm.bias"), "starts at byte"),
    "data after the arrays": (
        lambda f: signed(f, (f / WEIGHTS).read_bytes() + b"\0" * 8),
        "its arrays end at byte .* of ",
    ),
}
ARRAYS = {
    "lacks an array": (arrays(lambda found: found.pop(GENE)), "lacks the array 'weights.encoder.gene'"),
    "unknown array": (
        arrays(lambda found: found.update({"weights.__class__": np.ones(1)})),
        "has the unknown array 'weights.__class__'",
    ),
    "array of a path": (
        arrays(lambda found: found.update({"../../evil": np.ones(1)})),
        "has the unknown array '../../evil'",
    ),
    "another shape": (array(GENE, lambda gene: gene[:-1]), r"encoder.gene of shape \(79, 16\); \(80, 16\) is needed"),
    "transposed": (array(GENE, lambda gene: gene.T), r"encoder.gene of shape \(16, 80\); \(80, 16\) is needed"),
    "another type": (array(GENE, lambda gene: gene.astype("f8")), "encoder.gene of type float64; float32 is needed"),
    "whole numbers": (array("fitted.gene_share", lambda share: share.astype("i8")), "gene_share of type int64; float"),
    "NaN in weights": (value(GENE, (3, 3), math.nan), "other values in weights.encoder.gene than finite numbers"),
    "infinite weights": (value("weights.evidence.weight", (0, 0), math.inf), "other values in weights.evidence.weight"),
    "share of an expert": (value("weights._extra_state", 0, 2.0), "weights._extra_state than numbers from 0 to 1"),
    "gene share below 0": (value("fitted.gene_share", 0, -0.1), "fitted.gene_share than finite numbers of at least"),
    "NaN of gene shares": (value("fitted.gene_share", 0, math.nan), "fitted.gene_share than finite numbers of at"),
    "counts below 0": (value("fitted.class_counts", 0, -1), "fitted.class_counts than whole numbers of at least 0"),
    "cell below 0": (value("fitted.train_indices", 0, -5), "fitted.train_indices than whole numbers of at least 0"),
    "infinite mean": (value("fitted.profile.mean", (0, 0), math.inf), "fitted.profile.mean than finite numbers"),
    "gene of novelty beyond the genes": (
        value("fitted.novelty.genes", -1, 80),
        "novelty.genes than ascending positions",
    ),
    "genes of novelty unsorted": (
        array("fitted.novelty.genes", lambda genes: genes[::-1]),
        "novelty.genes than ascending positions of 80 genes",
    ),
    "novelty of two sizes": (
        array("fitted.novelty.center", lambda center: center[1:]),
        r"novelty.center of shape .*is needed",
    ),
    "means of more classes": (
        array("fitted.novelty.means", lambda means: np.repeat(means, 2, axis=0)),
        "novelty.means than 1 to 4 rows",
    ),
    "spread of 0": (value("fitted.novelty.spread", (0, 0), 0), "novelty.spread than finite numbers above 0"),
    "known scores unsorted": (value("fitted.novelty.known", 0, 1e6), "novelty.known than sorted finite numbers"),
}
CASES: dict[str, tuple[Change, str]] = FILES_OF | JSON | CONFIGS | HEADERS | ARRAYS
