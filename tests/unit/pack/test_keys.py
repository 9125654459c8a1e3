"""Keys are text, unique, and do not depend on what else is there more than they must."""

from hypothesis import given
from hypothesis import strategies as st

from mlcd_core.pack.keys import numbered, text_of, unique_keys


def test_the_suffix_goes_where_the_rest_is_enough() -> None:
    assert unique_keys(["a/x.jpg", "b/x.PNG", "c.d/y.tar.jpeg"]) == ["a/x", "b/x", "c.d/y.tar"]


def test_names_that_differ_in_the_suffix_alone_keep_it() -> None:
    assert unique_keys(["x.jpg", "x.png", "y.jpg"]) == ["x.jpg", "x.png", "y"]
    assert unique_keys(["a.jpg", "a.jpg.png", "a.png"]) == ["a.jpg", "a.jpg.png", "a.png"]


def test_bytes_that_are_no_text_are_spelled() -> None:
    assert text_of("caf\udce9/x") == "caf\\xe9/x"
    assert unique_keys(["caf\udce9.jpg", "caf\\xe9.jpg"]) == ["caf\\xe9.jpg", "caf\\xe9.jpg#2"]
    assert text_of("日本/ü x\n.jpg") == "日本/ü x\n.jpg"


names = st.text(alphabet="ab.#2", min_size=1, max_size=4).map(lambda stem: stem.strip(".") or "a")


@given(st.lists(names, max_size=12))
def test_numbered_keys_are_unique_and_the_first_of_equals_keeps_its_name(keys: list[str]) -> None:
    unique = numbered(keys)
    assert len(set(unique)) == len(keys)
    for place, (key, name) in enumerate(zip(keys, unique, strict=True)):
        assert name == key if key not in keys[:place] else name.startswith(f"{key}#")


@given(st.sets(st.tuples(names, st.sampled_from(["jpg", "png", "jpg.png"])), max_size=12))
def test_keys_of_any_names_are_unique_and_begin_them(found: set[tuple[str, str]]) -> None:
    files = sorted({f"{stem}.{suffix}" for stem, suffix in found})
    keys = unique_keys(files)
    assert len(set(keys)) == len(files)
    assert all(name.startswith(key) for key, name in zip(keys, files, strict=True))
