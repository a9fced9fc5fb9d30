"""Changes that make an AnnData bad input, and what an error message must say."""


def with_value(value):
    def change(adata):
        adata.X.data[5] = value

    return change


def with_obs(name, values):
    def change(adata):
        adata.obs[name] = values(adata)

    return change


def scale(adata):
    adata.layers["counts"] = adata.X.copy()
    X = adata.X.toarray()
    adata.X = (X - X.mean(axis=0)) / (X.std(axis=0) + 1)


def keep_raw_only(adata):
    adata.raw = adata.copy()
    adata.X = -adata.X


def repeat_a_gene(adata):
    adata.var_names = [*adata.var_names[:-1], "gene 0"]


def no_change(adata):
    pass


def assert_says(error, words):
    message = str(error.value)
    for word in words:
        assert word in message, f"{word!r} is not in: {message}"
    assert "/celler/" not in message
