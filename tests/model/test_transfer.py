"""scGPT folders: the embedding is that of torch's own encoder, and what cannot be read says why."""

import json
import re
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scgpt_cases import ARGS, SPECIAL, expected_embedding, tensors, write_folder
from scipy import sparse
from toy import assert_unchanged, celler_warning, cells, snapshot

from celler.model import Celler

GENES = list(cells(10).var_names)
#: The vocabulary has the genes in another order than the cells, and others between them.
VOCABULARY = [name for gene in GENES[::-1] for name in (gene, f"OTHER-{gene}")]


def as_flash(key: str) -> str:
    return re.sub(r"in_proj_(weight|bias)", r"Wqkv.\1", key)


def as_impl(key: str) -> str:
    return as_flash(key).replace("self_attn.", "self_attn._impl.")


def as_parallel(key: str) -> str:
    return f"module.{key}"


LAYOUTS = {
    "in_proj": lambda key: key,
    "Wqkv": as_flash,
    "_impl": as_impl,
    "module.": as_parallel,
    "module. and _impl": lambda key: as_parallel(as_impl(key)),
}


@pytest.fixture
def folder(tmp_path):
    write_folder(tmp_path / "scgpt", VOCABULARY)
    return tmp_path / "scgpt"


@pytest.fixture
def query() -> ad.AnnData:
    return cells(40, depth=0.6, seed=1)


def expected(state, query, vocabulary=VOCABULARY, args=ARGS) -> np.ndarray:
    rows = np.array([vocabulary.index(gene) for gene in GENES])
    return expected_embedding(state, query.X.toarray(), rows, len(vocabulary) + 1, args)


def load(folder, *args, **options) -> Celler:
    return Celler.from_pretrained(folder, *args, precision="float32", **options)


# ---- the embedding ----


@pytest.mark.parametrize("layout", LAYOUTS)
def test_from_pretrained_matches_torch(tmp_path, query, layout):
    state = tensors(len(VOCABULARY) + 3)
    renamed = {LAYOUTS[layout](key): value for key, value in state.items()}
    write_folder(tmp_path, VOCABULARY, state=renamed)
    lengths = (query.X > 0).sum(axis=1)
    assert lengths.min() < lengths.max()  # there is padding
    actual = load(tmp_path).get_latent_representation(query)
    np.testing.assert_allclose(actual, expected(state, query), atol=1e-5)


@pytest.mark.parametrize("specials", [(), ("<pad>",), SPECIAL])
def test_from_pretrained_without_special_tokens(tmp_path, query, specials):
    state = write_folder(tmp_path, VOCABULARY, specials=specials)
    actual = load(tmp_path).get_latent_representation(query)
    np.testing.assert_allclose(actual, expected(state, query), atol=1e-5)


def test_from_pretrained_without_heads(tmp_path, query):
    state = tensors(len(VOCABULARY) + 3)
    bare = {key: value for key, value in state.items() if "encoder." in key and "flag" not in key}
    write_folder(tmp_path, VOCABULARY, state=bare, file_name="model.pt")
    actual = load(tmp_path).get_latent_representation(query)
    np.testing.assert_allclose(actual, expected(state, query), atol=1e-5)


def test_from_pretrained_of_other_sizes(tmp_path, query):
    args = ARGS | {
        "embsize": 24, "nheads": 2, "nlayers": 3, "d_hid": 8, "n_bins": 11, "pad_value": -5
    }  # fmt: skip
    state = tensors(len(VOCABULARY) + 3, args)
    write_folder(tmp_path, VOCABULARY, args=args, state=state)
    actual = load(tmp_path).get_latent_representation(query)
    np.testing.assert_allclose(actual, expected(state, query, args=args), atol=1e-5)


def test_from_pretrained_in_half_precision(tmp_path, query):
    state = {key: value.half() for key, value in tensors(len(VOCABULARY) + 3).items()}
    write_folder(tmp_path, VOCABULARY, state=state)
    state = {key: value.float() for key, value in state.items()}
    actual = load(tmp_path).get_latent_representation(query)
    np.testing.assert_allclose(actual, expected(state, query), atol=1e-5)


def test_get_latent_representation_normalised(folder, query):
    model = load(folder)
    plain = model.get_latent_representation(query)
    actual = model.get_latent_representation(query, normalize=True)
    np.testing.assert_allclose(actual, plain / np.linalg.norm(plain, axis=1)[:, None], rtol=1e-5)


def test_get_latent_representation_in_any_order_and_storage(folder, query, rng):
    model = load(folder)
    plain = model.get_latent_representation(query)
    dense = ad.AnnData(query.X.toarray(), obs=query.obs, var=query.var)
    log = query.copy()
    log.X = query.X.multiply(1e4 / query.X.sum(axis=1)).log1p().tocsr()
    shuffled = query[:, rng.permutation(query.n_vars)]
    for other in (dense, sparse_in(query, sparse.csc_matrix), shuffled, log):
        actual = model.get_latent_representation(other)
        np.testing.assert_allclose(actual, plain, atol=1e-5)


def sparse_in(adata: ad.AnnData, kind) -> ad.AnnData:
    return ad.AnnData(kind(adata.X), obs=adata.obs, var=adata.var)


def test_get_latent_representation_of_a_part(folder, query):
    model, before = load(folder), snapshot(query)
    plain = model.get_latent_representation(query)
    some = model.get_latent_representation(query, [7, 3], batch_size=1)
    np.testing.assert_allclose(some, plain[[7, 3]], atol=1e-5)
    assert_unchanged(query, before)


def test_from_pretrained_with_max_genes(folder, query, rng):
    counts = rng.permuted(np.tile(np.arange(80.0) ** 2 + 1, (40, 1)), axis=1)
    query.X = sparse.csr_matrix(counts)
    model = load(folder, max_genes=9)
    plain = load(folder).get_latent_representation(query)
    actual = model.get_latent_representation(query)
    assert np.abs(actual - plain).max() > 0.01
    np.testing.assert_array_equal(actual, model.get_latent_representation(query))
    # Of the lower values it must not matter which gene has which.
    for row in counts:
        is_low = row < 71**2
        row[is_low] = rng.permutation(row[is_low])
    query.X = sparse.csr_matrix(counts)
    np.testing.assert_allclose(model.get_latent_representation(query), actual, atol=1e-5)


def test_from_pretrained_of_a_saved_model(folder, query, tmp_path):
    model = load(folder)
    model.save(tmp_path / "own")
    expected = model.get_latent_representation(query)
    for again in (Celler.from_pretrained(tmp_path / "own"), Celler.load(tmp_path / "own")):
        np.testing.assert_array_equal(again.get_latent_representation(query), expected)
    with pytest.raises(ValueError, match="keeps the network it has; leave out freeze_encoder"):
        Celler.from_pretrained(tmp_path / "own", freeze_encoder=True)


# ---- genes ----


def test_from_pretrained_with_genes_outside_the_vocabulary(folder, query):
    expected = load(folder).get_latent_representation(query[:, :60])
    named = query.var_names.to_list()
    named[60:] = [f"unheard of {i}" for i in range(20)]
    query.var_names = named
    share = query.X[:, :60].sum() / query.X.sum()
    model = load(folder)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        actual = model.get_latent_representation(query)
        model.get_latent_representation(query)
    message = str(celler_warning(caught).message)
    assert "60 of 80 genes are in the model's vocabulary" in message
    assert f"carry {share:.0%} of the cells' expression; the other 20 are not read" in message
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_from_pretrained_with_ensembl_ids(folder, query):
    query.var_names = [f"ENSG{i:011d}" for i in range(80)]
    with pytest.raises(ValueError, match=r"only 0 of the query's 80 genes.*human Ensembl ids"):
        load(folder).get_latent_representation(query)
    query.var["symbol"] = GENES
    with pytest.warns(UserWarning, match=r"names are those of adata.var\['symbol'\]"):
        load(folder).get_latent_representation(query)


# ---- what it cannot do ----


def test_from_pretrained_without_classes(folder, query):
    model = load(folder)
    assert model.is_pretrained
    assert not model.is_trained
    for ask in (model.predict, model.annotate):
        with pytest.raises(RuntimeError, match=r"learned no classes.*from_pretrained.*train\(\)"):
            ask(query)
    with pytest.raises(RuntimeError, match="setup_anndata"):
        model.train()


def test_celler_with_the_scgpt_encoder(query):
    Celler.setup_anndata(query, "cell_type")
    with pytest.raises(ValueError, match=r"Celler\.from_pretrained\(folder, adata\)"):
        Celler(query, encoder="scgpt")


# ---- bad folders ----


def change_args(**changes):
    def change(folder):
        args = {k: v for k, v in (ARGS | changes).items() if v is not None}
        (folder / "args.json").write_text(json.dumps(args))

    return change


def change_vocabulary(make):
    def change(folder):
        path = folder / "vocab.json"
        path.write_text(json.dumps(make(json.loads(path.read_text()))))

    return change


def change_state(make):
    def change(folder):
        torch.save(make(tensors(len(VOCABULARY) + 3)), folder / "best_model.pt")

    return change


def remove(name):
    return lambda folder: (folder / name).unlink()


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def cut_short(folder):
    path = folder / "best_model.pt"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def without(part):
    return change_state(lambda state: {k: v for k, v in state.items() if part not in k})


BAD_FOLDERS = {
    "no args": (remove("args.json"), FileNotFoundError, r"lacks args.json; an scGPT folder holds"),
    "no vocabulary": (remove("vocab.json"), FileNotFoundError, "lacks vocab.json"),
    "no weights": (remove("best_model.pt"), FileNotFoundError, "lacks best_model.pt or model.pt"),
    "damaged args": (write("args.json", b'{"embsize": '), ValueError, "args.json is damaged"),
    "list of args": (write("args.json", b"[1]"), ValueError, "args.json holds a list"),
    "damaged vocabulary": (write("vocab.json", b"\xff"), ValueError, "vocab.json is damaged"),
    "args lack a size": (change_args(nheads=None), ValueError, r"args.json lacks \['nheads'\]"),
    "size is no number": (change_args(nlayers="2"), ValueError, "nlayers='2'; a whole number"),
    "heads do not divide": (change_args(nheads=3), ValueError, "not a multiple of n_heads=3"),
    "other values": (change_args(input_emb_style="category"), ValueError, "only 'continuous' is"),
    "pre-norm": (change_args(pre_norm=True), ValueError, "pre_norm=True; only False"),
    "other width": (change_args(embsize=32), ValueError, r"has the shape \(163, 16\), expected is"),
    "other feed": (change_args(d_hid=8), ValueError, "linear1.weight.*Take both files from one"),
    "more layers": (change_args(nlayers=3), ValueError, r"lacks 12 of.*check nlayers"),
    "fewer layers": (
        change_args(nlayers=1),
        ValueError,
        r"12 unknown tensors that would change.*nlayers",
    ),
    "norm by batch": (
        change_state(lambda state: state | {"dsbn.bns.0.weight": torch.ones(16)}),
        ValueError,
        "1 unknown tensors that would change the encoder.*dsbn",
    ),
    "larger vocabulary": (
        change_vocabulary(lambda tokens: tokens | {"one more": len(tokens)}),
        ValueError,
        "has 164 tokens.*has 163 rows",
    ),
    "smaller vocabulary": (
        change_vocabulary(lambda tokens: dict(list(tokens.items())[:50])),
        ValueError,
        "has 53 tokens.*has 163 rows",
    ),
    "rows twice": (
        change_vocabulary(lambda tokens: tokens | {"<eoc>": 0}),
        ValueError,
        "each token its own row",
    ),
    "no part": (without("value_encoder.norm"), ValueError, r"lacks 2 of.*value_encoder.norm"),
    "objects": (
        change_state(lambda state: state | {"frame": pd.DataFrame({"a": [1]})}),
        ValueError,
        r"was not opened: it contains pandas.*only tensors are read.*state_dict",
    ),
    "numbers": (change_state(lambda state: state | {"epoch": 3}), ValueError, r"also \['epoch'\]"),
    "nested": (
        change_state(lambda state: {"model": state}),
        ValueError,
        r"not only tensors but also \['model'\]",
    ),
    "a list": (
        change_state(lambda state: list(state.values())),
        ValueError,
        "holds a list, not named",
    ),
    "text": (write("best_model.pt", b"no model"), ValueError, "no file of tensors|damaged"),
    "cut short": (cut_short, ValueError, "damaged or cut short"),
    "twice": (
        change_state(lambda state: state | {as_parallel(k): v for k, v in state.items()}),
        ValueError,
        "twice, under different names",
    ),
}


@pytest.mark.parametrize("name", BAD_FOLDERS)
def test_read_scgpt_of_a_bad_folder(folder, name):
    change, kind, words = BAD_FOLDERS[name]
    change(folder)
    with pytest.raises(kind, match=words) as error:
        load(folder)
    if name != "heads do not divide":
        assert str(folder) in str(error.value)


def test_from_pretrained_of_an_empty_folder(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match=r"holds no model.*model.save.*args.json"):
        load(tmp_path / "nowhere")
    (folder / "best_model.pt").rename(tmp_path / "model.pt")
    with pytest.raises(ValueError, match="not a Celler model.*An scGPT folder needs args.json"):
        Celler.from_pretrained(tmp_path)


def test_read_scgpt_with_unknown_tensors(tmp_path, query):
    state = tensors(len(VOCABULARY) + 3)
    write_folder(tmp_path, VOCABULARY, state=state | {"bn.weight": torch.ones(16)})
    with pytest.warns(UserWarning, match=r"1 tensors outside scGPT's layout; not read: \['bn.weight'\]"):
        model = load(tmp_path)
    actual = model.get_latent_representation(query)
    np.testing.assert_allclose(actual, expected(state, query), atol=1e-5)
