"""Data sets copied to a shared storage: step by step, whole before they are seen."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapters.output import Output
from adapters.staging import remove, step
from broker.adapter import CopyRef, CopySighting, CopyState, Unavailable
from broker.core.model import CenterId

FILES = {"a.bin": b"a" * 10, "sub/b.bin": b"b" * 25, "sub/empty": b"", "z": b"z"}


@pytest.fixture
def copy(tmp_path: Path) -> CopyRef:
    source = tmp_path / "source"
    for name, content in FILES.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(content)
    (tmp_path / "shared").mkdir()
    return CopyRef("ds-1", CenterId("c"), str(source), 36)


def output(tmp_path: Path) -> Output:
    return Output("/mnt/broker", tmp_path / "shared")


def there(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


async def test_a_copy_moves_in_steps_and_is_seen_when_it_is_whole(tmp_path: Path, copy: CopyRef) -> None:
    final = tmp_path / "shared/datasets/ds-1"
    seen: list[CopySighting] = []
    while not seen or seen[-1].state is not CopyState.READY:
        assert not final.exists()
        seen.append(await step(output(tmp_path), copy, most=8))
    assert there(final) == FILES
    assert [s.bytes_done for s in seen] == [8, 16, 24, 32, 36]
    assert seen[-1].remote == "/mnt/broker/datasets/ds-1"
    again = await step(output(tmp_path), copy)
    assert (again.state, again.remote) == (CopyState.READY, seen[-1].remote)


async def test_a_copy_that_was_cut_off_goes_on(tmp_path: Path, copy: CopyRef) -> None:
    part = tmp_path / "shared/datasets/ds-1.part/sub"
    part.mkdir(parents=True)
    (part / "b.bin").write_bytes(b"b" * 7)
    assert (await step(output(tmp_path), copy)).state is CopyState.READY
    assert there(tmp_path / "shared/datasets/ds-1") == FILES


async def test_an_empty_data_set(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "shared").mkdir()
    empty = CopyRef("none", CenterId("c"), str(tmp_path / "source"), 0)
    assert (await step(output(tmp_path), empty)).state is CopyState.READY


@pytest.mark.parametrize("name", ["../x", "a/b", "..", "", "x.part"])
async def test_a_name_that_is_none(tmp_path: Path, copy: CopyRef, name: str) -> None:
    seen = await step(output(tmp_path), CopyRef(name, copy.center, copy.source, 1))
    assert seen.state is CopyState.FAILED
    assert list((tmp_path / "shared").iterdir()) == []


async def test_what_is_missing_is_told(tmp_path: Path, copy: CopyRef) -> None:
    with pytest.raises(Unavailable, match="is it mounted"):
        await step(Output("/mnt", tmp_path / "nowhere"), copy)
    gone = CopyRef("ds-2", copy.center, str(tmp_path / "nothing"), 1)
    with pytest.raises(Unavailable, match="'ds-2' is not at"):
        await step(output(tmp_path), gone)


async def test_a_copy_is_removed_whole_or_half(tmp_path: Path, copy: CopyRef) -> None:
    folder = tmp_path / "shared/datasets"
    while (await step(output(tmp_path), copy)).state is not CopyState.READY:
        pass
    (folder / "ds-2.part").mkdir()
    (folder / "ds-3").mkdir()
    for dataset in ("ds-1", "ds-2", "ds-2", "never", "../shared"):
        await remove(output(tmp_path), dataset)
    assert [path.name for path in folder.iterdir()] == ["ds-3"]
    with pytest.raises(Unavailable, match="is it mounted"):
        await remove(Output("/mnt/broker", tmp_path / "gone"), "ds-1")


async def test_a_link_in_the_place_of_a_copy_leads_nowhere(tmp_path: Path, copy: CopyRef) -> None:
    (tmp_path / "shared/datasets").mkdir()
    (tmp_path / "shared/datasets/ds-1").symlink_to(copy.source)
    await remove(output(tmp_path), "ds-1")
    assert there(Path(copy.source)) == FILES
    assert list((tmp_path / "shared/datasets").iterdir()) == []
