"""Models on a hub, against a stand-in on localhost: equal to the bit, pinned, cached, and clear about what is wrong."""

import json
import re
import sys

import anndata as ad
import pytest
from base_cases import fit_known
from hub_stand_in import TOKEN, Hub, running
from toy import assert_equal_frames, cells, fit, pretrained, soft, trained

from celler.cli import main
from celler.model import Celler
from celler.model._folder import CARD, CONFIG, FILES, WEIGHTS
from celler.model._hub import address_of, is_address

constants = pytest.importorskip("huggingface_hub.constants")
#: The library's own: it passes a file to its HTTP client in an old way.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")
ADDRESS = "hf://owner/blood"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub, whose owner is logged in, and an empty cache."""
    with running() as found:
        monkeypatch.setenv("HF_ENDPOINT", found.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
        for name in ("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_PROGRESS_BARS"):
            monkeypatch.setattr(constants, name, True, raising=False)  # an early version lacks one
        yield found


@pytest.fixture
def query() -> ad.AnnData:
    return cells(60, seed=1)


def files_of(hub: Hub, revision: str = "main") -> dict[str, bytes]:
    repository = hub.repositories["owner/blood"]
    return repository.commits[repository.resolve(revision)]


def test_push_and_load_predict_equal_to_the_bit(hub, query):
    address = trained().push_to_hub("owner/blood")
    commit = hub.repositories["owner/blood"].branches["main"]
    assert address == f"{ADDRESS}@{commit}"
    assert set(files_of(hub)) == {".gitattributes", *FILES}
    assert len(hub.repositories["owner/blood"].messages) == 2  # the hub's own commit and one of three files
    for place in (ADDRESS, address, f"{ADDRESS}@main"):
        model = Celler.load(place)
        assert_equal_frames(model.predict(query, soft=True), soft(query))
        assert f"\n  loaded    {address}\n" in repr(model)


def test_load_downloads_three_files_once(hub):
    trained().push_to_hub("owner/blood")
    repository = hub.repositories["owner/blood"]
    repository.commit("main", {"virus.py": b"x", "model.pt": b"x", "big.bin": b"x"}, "more")
    hub.requests.clear()
    Celler.load(ADDRESS)
    fetched = [
        request.rpartition("/")[2] for request in hub.requests if request.startswith("GET") and "resolve" in request
    ]
    assert sorted(fetched) == sorted(FILES)
    hub.requests.clear()
    Celler.load(ADDRESS)
    assert not [request for request in hub.requests if request.startswith("GET") and "resolve" in request]


def test_load_from_the_cache_without_the_hub(hub, query, monkeypatch):
    address = trained().push_to_hub("owner/blood")
    Celler.load(ADDRESS)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for place in (ADDRESS, address):
        assert_equal_frames(Celler.load(place).predict(query, soft=True), soft(query))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    model = Celler.load(ADDRESS)
    assert address in repr(model)


def test_load_of_an_earlier_commit_and_of_a_branch(hub, query):
    first = trained().push_to_hub("owner/blood")
    other = fit(cells(), max_epochs=1)
    second = other.push_to_hub("owner/blood")
    third = other.push_to_hub("owner/blood", revision="trial", commit_message="A trial")
    assert len({first, second, third}) == 3
    assert hub.repositories["owner/blood"].messages[-1] == "A trial"
    expected = other.predict(query, soft=True)
    assert_equal_frames(Celler.load(first).predict(query, soft=True), soft(query))
    assert_equal_frames(Celler.load(ADDRESS).predict(query, soft=True), expected)
    loaded = Celler.load(f"{ADDRESS}@trial")
    assert_equal_frames(loaded.predict(query, soft=True), expected)
    assert third in repr(loaded)
    hub.repositories["owner/blood"].branches["main"] = first.rpartition("@")[2]
    assert_equal_frames(Celler.load(ADDRESS).predict(query, soft=True), soft(query))


def test_card_on_the_hub_says_how_to_load_it(hub):
    trained().push_to_hub("owner/blood", license="cc-by-4.0", private=True)
    card = files_of(hub)[CARD].decode()
    assert f'Celler.load("{ADDRESS}")' in card
    assert "\nlicense: cc-by-4.0\n" in card
    assert hub.repositories["owner/blood"].private


def test_push_keeps_the_card_of_its_author(hub):
    trained().push_to_hub("owner/blood", license="mit")
    other = fit(cells(), max_epochs=1)
    other.push_to_hub("owner/blood")
    card = files_of(hub)[CARD].decode()
    assert "\nlicense: mit\n" in card  # the figures are new, the licence stays
    assert "kept epoch 1 of 1" in card
    mine = card + "\nAsk me."
    hub.repositories["owner/blood"].commit("main", {CARD: mine.encode()}, "edited on the hub")
    with pytest.warns(UserWarning, match=rf"the card of {ADDRESS} was changed by its author and is kept"):
        trained().push_to_hub("owner/blood")
    assert files_of(hub)[CARD].decode() == mine
    with pytest.warns(UserWarning, match="is kept"):
        trained().push_to_hub("owner/blood", license="cc0-1.0")
    assert files_of(hub)[CARD].decode() == mine.replace("license: mit", "license: cc0-1.0")
    Celler.load(ADDRESS).push_to_hub("owner/blood")  # the card that it was loaded with
    assert "Ask me." in files_of(hub)[CARD].decode()


def test_push_takes_the_card_of_a_folder_along(hub, tmp_path):
    trained().save(tmp_path / "model")
    with (tmp_path / "model" / CARD).open("a") as file:
        file.write("From the lab.")
    Celler.load(tmp_path / "model").push_to_hub("owner/blood")
    assert files_of(hub)[CARD].decode().endswith("From the lab.")


def test_push_into_a_repository_with_a_card_of_another_kind(hub):
    trained().push_to_hub("owner/blood")
    repository = hub.repositories["owner/blood"]
    repository.commits[repository.branches["main"]] = {CARD: b"# About"}
    with pytest.warns(UserWarning, match="was changed by its author and is kept"):
        trained().push_to_hub("owner/blood")
    assert files_of(hub)[CARD] == b"# About"


def test_all_that_takes_a_folder_takes_an_address(hub, query, tmp_path):
    trained().push_to_hub("owner/blood")
    assert_equal_frames(Celler.from_pretrained(ADDRESS).predict(query, soft=True), soft(query))
    assert list(Celler.prepare_query_anndata(query, ADDRESS).var_names) == list(trained().genes_.index)
    extended = Celler.load_query_data(cells(100, seed=3), ADDRESS)
    assert list(extended.classes_) == list(trained().classes_)
    assert "loaded" not in repr(extended)
    pretrained().push_to_hub("owner/encoder")
    adata = cells()
    Celler.setup_anndata(adata, "cell_type")
    model = Celler(adata, d_model=16, precision="float32")
    model.load_encoder("hf://owner/encoder")
    assert model.is_pretrained
    query.write_h5ad(tmp_path / "query.h5ad")
    out = tmp_path / "out.h5ad"
    assert main(["annotate", ADDRESS, str(tmp_path / "query.h5ad"), "--out", str(out)]) == 0
    assert list(ad.read_h5ad(out).obs["celler"].astype(str)) == list(trained().predict(query))


def test_pretrain_of_a_loaded_model_forgets_the_commit(hub):
    model = Celler.load(pretrained().push_to_hub("owner/encoder"))
    assert "loaded    hf://owner/encoder@" in repr(model)
    model.pretrain(adata=cells(), max_epochs=1, show_progress=False)
    assert "owner/encoder" not in repr(model)


def test_push_and_load_of_a_model_on_the_base(hub):
    model = fit_known(max_epochs=1)
    assert repr(model).splitlines() == [
        line for line in repr(Celler.load(model.push_to_hub("owner/blood"))).splitlines() if "loaded" not in line
    ]


def damaged(hub: Hub) -> None:
    repository = hub.repositories["owner/blood"]
    data = bytearray(files_of(hub)[WEIGHTS])
    data[-1] ^= 1
    repository.commit("main", {WEIGHTS: bytes(data)}, "damaged")


def without_model(hub: Hub) -> None:
    repository = hub.repositories["owner/blood"]
    repository.commits[repository.branches["main"]] = {"pytorch_model.bin": b"x", CARD: b"x"}


def of_transformers(hub: Hub) -> None:
    hub.repositories["owner/blood"].commit("main", {CONFIG: json.dumps({"model_type": "bert"}).encode()}, "bert")


def huge(hub: Hub) -> None:
    sizes = hub.sizes
    hub.sizes = lambda files: sizes(files) | {WEIGHTS: 10**12}


def private(hub: Hub) -> None:
    hub.repositories["owner/blood"].private = True


def gated(hub: Hub) -> None:
    hub.repositories["owner/blood"].gated = True


def refusing(status: int):
    return lambda hub: setattr(hub, "refuse", status)


NOT_LOADED = {
    "damaged": (ADDRESS, damaged, ValueError, r"model\.safetensors has another SHA-256"),
    "no model": (
        ADDRESS,
        without_model,
        FileNotFoundError,
        "holds no Celler model: there is no config.json and no model",
    ),
    "of transformers": (ADDRESS, of_transformers, ValueError, "is no config of a Celler model"),
    "huge": (ADDRESS, huge, ValueError, r"has a model\.safetensors of 1,000,000,000,000 bytes.*It was not downloaded"),
    "private": (ADDRESS, private, FileNotFoundError, "does not exist, or is private .*hf auth login"),
    "gated": (ADDRESS, gated, PermissionError, "is gated: its owner admits readers one by one. Ask for access"),
    "forbidden": (ADDRESS, refusing(403), PermissionError, r"the hub refuses access \(403\)\. Log in"),
    "broken": (ADDRESS, refusing(500), ConnectionError, "could not be reached: .*500.*try again"),
    "no repository": (
        "hf://owner/blod",
        refusing(None),
        FileNotFoundError,
        "hf://owner/blod does not exist, or is pri",
    ),
    "no revision": (f"{ADDRESS}@v9", refusing(None), FileNotFoundError, "blood@v9 has no such revision; name a branch"),
}


@pytest.mark.parametrize(("address", "change", "kind", "words"), NOT_LOADED.values(), ids=NOT_LOADED)
def test_load_of_what_cannot_be_loaded(hub, monkeypatch, address, change, kind, words):
    trained().push_to_hub("owner/blood")
    change(hub)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(kind, match=words) as error:
        Celler.load(address)
    assert error.value.__suppress_context__ or error.value.__context__ is None
    assert not re.search("Client Error|Traceback|https?://", str(error.value).replace(hub.url, ""))


@pytest.mark.parametrize("offline", [True, False])
def test_load_without_hub_or_cache(hub, monkeypatch, offline):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ConnectionError, match="is not in the cache of downloaded models and the hub cannot be reached"):
        Celler.load(ADDRESS)
    with pytest.raises(
        ConnectionError, match=f"{ADDRESS} could not be reached: .*(offline|refused).*Check the connection"
    ):
        trained().push_to_hub("owner/blood")


@pytest.mark.parametrize(("token", "status"), [(None, 401), ("hf_of_another", 401)])
def test_push_without_a_right_to(hub, monkeypatch, token, status):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(PermissionError, match=rf"the hub refuses access \({status}\)\. Log in.*write to it"):
        trained().push_to_hub("owner/blood", token=token)


def test_push_to_the_repository_of_another(hub, monkeypatch):
    trained().push_to_hub("owner/blood")
    hub.refuse = 403
    with pytest.raises(PermissionError, match=r"the hub refuses access \(403\)"):
        trained().push_to_hub("owner/blood")


def test_push_with_a_token(hub, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    assert trained().push_to_hub("owner/blood", token=TOKEN).startswith(ADDRESS)


@pytest.mark.parametrize(
    "address",
    [
        "hf://",
        "hf://blood",
        "hf://owner/blood/config.json",
        "hf://owner/",
        "hf://../../etc",
        "hf://owner/..",
        "hf://owner/blood@",
        "hf://owner/blood@../main",
        "hf://owner/bl ood",
        "hf://owner/blood@a@b",
        "hf://owner/blood\n",
        "hf://owner/-x?y=1",
    ],
)
def test_load_of_a_bad_address(address):
    """Refused before anything is asked, so no hub is needed."""
    with pytest.raises(ValueError, match=r"is no address of a model; hf://owner/name is needed"):
        Celler.load(address)


@pytest.mark.parametrize("address", ["hf://owner/a..b", "hf://owner/" + "a" * 200, "hf://owner/a.git"])
def test_load_of_an_address_that_the_hub_forbids(hub, address):
    with pytest.raises(ValueError, match=re.escape(address)):
        Celler.load(address)


def test_push_to_a_bad_address():
    for repo_id in ("blood", ADDRESS, "owner/blood/x"):
        with pytest.raises(ValueError, match="For push_to_hub: 'owner/name'"):
            trained().push_to_hub(repo_id)
    with pytest.raises(ValueError, match="an identifier of the hub is needed"):
        trained().push_to_hub("owner/blood", license="My Licence")


def test_push_before_training():
    adata = cells()
    Celler.setup_anndata(adata, "cell_type")
    with pytest.raises(RuntimeError, match=r"not trained; call train\(\)"):
        Celler(adata, d_model=16).push_to_hub("owner/blood")


def test_hub_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for call in (lambda: Celler.load(ADDRESS), lambda: trained().push_to_hub("owner/blood")):
        with pytest.raises(ImportError, match=r'not installed: pip install "celler\[hub\]"'):
            call()


def test_address_of_a_path():
    """A Path turns two slashes into one."""
    assert is_address("hf:/owner/name")
    assert not is_address("my_model")
    assert not is_address("/data/hf:/owner")
    assert address_of("owner/name", "refs/pr/1") == "hf://owner/name@refs/pr/1"
