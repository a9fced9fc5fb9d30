"""Options of a build."""

import pytest

import celler as cl


@pytest.mark.parametrize("options", [{"dtype": "float32"}, {"memory_gb": 0.5}])
def test_storage_with_unusable_values(options):
    name, value = next(iter(options.items()))
    with pytest.raises(ValueError, match=f"{name}={value!r}"):
        cl.atlas.Storage(**options)
