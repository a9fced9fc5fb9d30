"""Notebook: what a model shows of itself, of a loaded one too."""

import html.parser

import pytest
from toy import cells, fit, trained

from celler.model import Celler
from celler.model._notebook import FOR_DEVELOPERS
from celler.model._notebook import html as html_of


class Texts(html.parser.HTMLParser):
    """The texts of a page, by the element around them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.texts: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1], data))


def test_repr_html_has_the_lines_of_repr():
    model = trained()
    texts = Texts(model._repr_html_()).texts
    title, *lines = repr(model).splitlines()
    assert texts[0] == ("b", title)
    pairs = zip(texts[1::2], texts[2::2], strict=True)
    assert [f"{name} {text}" for (_, name), (_, text) in pairs] == [" ".join(line.split()) for line in lines]


def test_html_escapes_names():
    page = html_of("Celler: <b>\n  classes   a & <script>alert(1)</script>")
    assert "<script>" not in page
    assert Texts(page).texts[-1] == ("td", "a & <script>alert(1)</script>")


def test_dir_names_what_works():
    model = fit(cells(60), max_epochs=1)
    listed = {name for name in dir(model) if not name.startswith("_")}
    assert not listed & FOR_DEVELOPERS
    assert {"predict", "annotate", "history", "train_indices", "adata_manager", "to_device"} <= listed
    assert all(hasattr(model, name) for name in listed)
    assert all(hasattr(Celler, name) or hasattr(model, name) for name in FOR_DEVELOPERS)


@pytest.mark.parametrize("is_loaded", [False, True])
def test_view_anndata_setup(is_loaded, tmp_path, capsys):
    model = trained()
    if is_loaded:
        model.save(tmp_path / "model")
        model = Celler.load(tmp_path / "model")
    model.view_anndata_setup()
    shown = capsys.readouterr().out
    assert "'labels_key': 'cell_type'" in shown
    assert "'parent_labels_key': 'parent_type'" in shown
    assert ("Summary Statistics" in shown) != is_loaded


def test_view_anndata_setup_without_the_tables(capsys):
    trained().view_anndata_setup(hide_state_registries=True)
    assert "State Registry" not in capsys.readouterr().out
    with pytest.raises(ValueError, match="not setup with Celler"):
        trained().view_anndata_setup(cells())
