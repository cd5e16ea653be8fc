"""Files as people have them, and damaged ones: each is read as it is meant or refused in one line, and nothing else happens."""

import io
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from invsolve.data.images import Images
from invsolve.data.items import find_files
from invsolve.data.measurements import Measurement
from invsolve.data.mri import MRIData
from invsolve.errors import ConfigError
from invsolve.runs.intake import read_item
from operators import Inpainting
from operators.core.files import read_array

RNG = np.random.default_rng(0)
PIXELS = (RNG.random((12, 10, 3)) * 255).astype(np.uint8)
Y = RNG.uniform(-1, 1, (3, 8, 8)).astype(np.float32)


def picture(name: str, pixels=PIXELS, **options) -> None:
    Image.fromarray(pixels).save(name, **options)


def volume(name: str, **more) -> None:
    import h5py

    with h5py.File(name, "w") as file:
        file.create_dataset("kspace", data=(RNG.normal(size=(2, 8, 8)) + 1j).astype(np.complex64), compression="gzip")
        for key, value in more.items():
            file[key] = value


def bart(name: str) -> None:
    path = Path(name)
    path.write_bytes((RNG.normal(size=64) + 1j).astype("<c8").tobytes())
    path.with_suffix(".hdr").write_text("# Dimensions\n8 8 1 1\n")


WRITERS = {
    "rgb.png": lambda name: picture(name, dpi=(72, 72)),
    "palette.png": lambda name: Image.fromarray(PIXELS).quantize(8).save(name, transparency=1),
    "grey16.png": lambda name: picture(name, PIXELS[..., 0].astype(np.uint16) * 257),
    "exif.jpg": lambda name: picture(name, exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"),
    "deflated.tif": lambda name: picture(name, compression="tiff_adobe_deflate"),
    "float.tif": lambda name: picture(name, RNG.random((9, 9)).astype(np.float32)),
    "plain.bmp": picture,
    "lossy.webp": picture,
    "y.npy": lambda name: np.save(name, Y),
    "y.npz": lambda name: np.savez(name, y=Y, id="named"),
    "deflated.npz": lambda name: np.savez_compressed(name, y=Y, id="named"),
    "y.pt": lambda name: torch.save(torch.from_numpy(Y), name),
    "k.h5": volume,
    "k.cfl": bart,
}


def mutants(content: bytes, count: int, seed: int):
    """Copies of a file with a few bytes changed, cut, doubled or taken out; most damage lies in the first bytes, where headers are."""
    random = np.random.default_rng(seed)
    for k in range(count):
        held = bytearray(content)
        reach = min(len(held), 200) if k % 2 else len(held)
        at, kind = int(random.integers(reach)), k % 6
        if kind == 0:
            held = held[:at]
        elif kind == 1:
            for place in random.integers(reach, size=8):
                held[place] = random.integers(256)
        elif kind == 2:
            held[at : at + 8] = b"\xff" * 8
        elif kind == 3:
            held[at : at + 4] = b""
        elif kind == 4:
            held[at:at] = bytes(random.integers(256, size=16, dtype=np.uint8))
        else:
            held[at] ^= 1 << int(random.integers(8))
        yield bytes(held)


def outcome(source, load) -> str:
    """Whether something was "read" or "refused"; any other error passes through. What was read is made of finite numbers."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a warning would be a line more
            found = [load(item)[1] for item in source().items()]
    except ConfigError as error:
        assert str(error) and "\n" not in str(error)
        return "refused"
    assert all(np.isfinite(one).all() for one in found)
    return "read"


@pytest.mark.parametrize("name", WRITERS)
def test_damaged_files_are_read_or_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    WRITERS[name](name)
    suffix = Path(name).suffix
    sources = {".npy": [Measurement, Images], ".npz": [Measurement], ".pt": [Measurement], ".h5": [MRIData], ".cfl": [MRIData]}.get(
        suffix, [Images]
    )
    make = {Measurement: lambda: Measurement(name), Images: lambda: Images(name, alpha="white"), MRIData: lambda: MRIData(name, "max")}
    sound = Path(name).read_bytes()
    for source in sources:
        assert outcome(make[source], read_item) == "read"
    seen = {"read": 0, "refused": 0}
    for content in mutants(sound, 36, 1):
        Path(name).write_bytes(content)
        for source in sources:
            seen[outcome(make[source], read_item)] += 1
        if suffix in (".png", ".npy", ".pt"):  # the same files as masks and kernels
            try:
                read_array(name, "mask", transparent_hides=True)
            except ValueError as error:
                assert "\n" not in str(error)
    assert seen["refused"] > 0 or suffix in (".bmp", ".cfl")  # whose headers are short


# -- what is fine is read -------------------------------------------------------------------------------------------------


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@pytest.mark.parametrize(
    "note",
    [
        chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b" " * 3_000_000)),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b" " * 3_000_000)),
        chunk(b"eXIf", b"\0\x08\0\2\1\x12\0\3"),
        chunk(b"eXIf", b"II*\0\xff\xff\xff\xff"),
        chunk(b"iCCP", b"icc\0\0" + b"no deflate stream"),
        chunk(b"tEXt", b"a\0b")[:-4] + b"\0\0\0\0",
    ],
    ids=["ztxt", "xmp", "exif", "exif offset", "profile", "checksum"],
)
@pytest.mark.parametrize("behind", [False, True])
def test_notes_beside_the_pixels_do_not_matter(tmp_path, note, behind):
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, format="PNG")
    content = file.getvalue()
    at = content.index(b"IEND" if behind else b"IDAT") - 4
    (tmp_path / "a.png").write_bytes(content[:at] + note + content[at:])
    (item,) = Images(str(tmp_path / "a.png")).items()
    np.testing.assert_allclose(read_item(item)[1], PIXELS.transpose(2, 0, 1) / 127.5 - 1, atol=1e-6)
    mask, _ = read_array(tmp_path / "a.png", "mask")
    assert tuple(mask.shape) == PIXELS.shape[:2]


def test_the_orientation_of_a_sound_note_still_counts(tmp_path):
    exif = Image.Exif()
    for orientation in range(1, 9):
        exif[0x0112] = orientation
        picture(tmp_path / "a.png", exif=exif)
        from PIL import ImageOps

        with Image.open(tmp_path / "a.png") as opened:
            expected = np.asarray(ImageOps.exif_transpose(opened)).transpose(2, 0, 1) / 127.5 - 1
        (item,) = Images(str(tmp_path / "a.png")).items()
        assert item.image_shape == expected.shape
        np.testing.assert_allclose(read_item(item)[1], expected, atol=1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(">f4", 0), (">f8", 0), ("<f2", 0), ("longdouble", 0), (">c8", 0), (">i2", 0)])
def test_numbers_of_any_kind_and_byte_order(tmp_path, dtype, tolerance):
    y = (10 * Y).round() if "i" in dtype else Y.astype(np.float16)
    np.save(tmp_path / "y.npy", y.astype(dtype))
    np.savez(tmp_path / "y.npz", y=y.astype(dtype))
    for name in ("y.npy", "y.npz"):
        (item,) = Measurement(str(tmp_path / name)).items()
        found = read_item(item)[1]
        assert found.dtype == (np.complex64 if "c" in dtype else np.float32)
        np.testing.assert_array_equal(found, y.astype(np.float32))
    np.save(tmp_path / "mask.npy", (Y[0] > 0).astype(dtype))
    if "c" not in dtype:
        assert torch.equal(read_array(tmp_path / "mask.npy", "mask")[0], torch.from_numpy(Y[0] > 0).double())


def test_tensors_of_every_kind(tmp_path):
    path, x = tmp_path / "y.pt", torch.from_numpy(Y)
    for tensor in (x.clone().requires_grad_(), x.bfloat16(), x.half(), x.mT, torch.zeros(1).expand(3, 8, 8), x.to(torch.float8_e4m3fn)):
        torch.save(tensor, path)
        (item,) = Measurement(str(path)).items()
        np.testing.assert_array_equal(read_item(item)[1], tensor.detach().float().numpy())
    for tensor, told in (
        (x.to_sparse(), "sparse"), (x[0].to_sparse_csr(), "sparse"), (torch.quantize_per_tensor(x, 0.1, 0, torch.qint8), "quantised"),
        (torch.empty(3, 8, 8, device="meta"), "no values"), (torch.zeros(1).expand(2**20, 2**20), "at most"), ({"y": x}, "dict"),
        (torch.zeros(3, 8, 8, dtype=torch.bool), "numbers are needed"),
    ):  # fmt: skip
        torch.save(tensor, path)
        with pytest.raises(ConfigError, match=told):
            Measurement(str(path)).items()


# -- what is not is refused with its reason -------------------------------------------------------------------------------


def npy(shape: str, descr: str = "<f4", content: bytes = b"") -> bytes:
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}"
    header += " " * (-(len(header) + 11) % 64) + "\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header.encode() + content


@pytest.mark.parametrize("shape", ["(1000000, 1000000, 3)", "(9999999999999999999999,)", "(-1, 3)", "(3, 8, 9)"])
def test_a_header_may_not_claim_more_than_there_is(tmp_path, shape):
    (tmp_path / "y.npy").write_bytes(npy(shape, content=Y.tobytes()))
    import zipfile

    with zipfile.ZipFile(tmp_path / "y.npz", "w") as file:
        file.writestr("y.npy", npy(shape, content=Y.tobytes()))
    for name in ("y.npy", "y.npz"):
        with pytest.raises(ConfigError, match="claims an array"):
            Measurement(str(tmp_path / name)).items()
    with pytest.raises(ValueError, match="claims an array"):
        Inpainting((3, 8, 8), kind="file", mask=str(tmp_path / "y.npy"))


def stored(name, value):
    np.save(name, value, allow_pickle=True) if name.endswith(".npy") else np.savez(name, y=value)


REFUSED_Y = {
    "NaN first": (np.where(np.arange(192).reshape(3, 8, 8) == 0, np.nan, Y), "1 values of 192 that are NaN"),
    "beyond single precision": (np.where(Y > 0.5, 1e39, Y.astype(np.float64)), "single precision"),
    "words": (np.array(["a", "b"]), "numbers are needed"),
    "truth values": (Y > 0, "numbers are needed"),
    "fields": (np.zeros(3, [("a", "f4"), ("b", "f4")]), "numbers are needed"),
    "dates": (np.zeros(3, "datetime64[s]"), "numbers are needed"),
}


@pytest.mark.parametrize("case", REFUSED_Y)
def test_what_is_no_measurement(tmp_path, case):
    value, told = REFUSED_Y[case]
    for name in ("y.npy", "y.npz"):
        stored(str(tmp_path / name), value)
        with pytest.raises(ConfigError, match=told):
            Measurement(str(tmp_path / name)).items()


def test_images_that_pillow_would_cut(tmp_path):
    pages = [Image.fromarray(PIXELS), Image.fromarray(PIXELS), Image.fromarray(PIXELS)]
    pages[0].save(tmp_path / "stack.tif", save_all=True, append_images=pages[1:])
    pages[0].save(tmp_path / "moving.png", save_all=True, append_images=[Image.fromarray(255 - PIXELS)])
    raw = b"".join(b"\0" + bytes(range(12)) for _ in range(2))
    colour = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0))
    (tmp_path / "deep.png").write_bytes(colour + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b""))
    Image.fromarray(np.linspace(-0.5, 2, 64, dtype=np.float32).reshape(8, 8)).save(tmp_path / "float.tif")
    Image.fromarray(np.full((4, 4), np.nan, np.float32)).save(tmp_path / "nan.tif")
    for name, told in (
        ("stack.tif", "3 pages"), ("moving.png", "2 pages"), ("deep.png", "3 channels of 16 bits"), ("float.tif", r"\[0, 1\]"),
        ("nan.tif", r"\[0, 1\]"),
    ):  # fmt: skip
        (item,) = Images(str(tmp_path / name)).items()
        with pytest.raises(ConfigError, match=told):
            read_item(item)[1]
    for name in ("stack.tif", "deep.png"):
        with pytest.raises(ValueError, match="3 pages|16 bits"):
            Inpainting((3, 12, 10), kind="file", mask=str(tmp_path / name))


def test_floating_point_masks_are_not_clipped(tmp_path):
    values = np.where(Y[0] > 0, np.float32(0.25), np.float32(0))
    Image.fromarray(values).save(tmp_path / "mask.tif")
    assert torch.equal(read_array(tmp_path / "mask.tif", "mask")[0], torch.from_numpy(values).double())


def test_a_picture_beyond_the_limit_names_both(tmp_path, monkeypatch):
    picture(tmp_path / "scan.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 59)
    (item,) = Images(str(tmp_path / "scan.png")).items()
    assert "120 pixels" in item.problem and "118 pixels" in item.problem
    with pytest.raises(ValueError, match="120 pixels.*118 pixels"):
        read_array(tmp_path / "scan.png", "mask")


def test_transparency_in_a_mask(tmp_path):
    """White beside transparency is a mask; with other colours it cannot be known what is hidden, and a kernel has none."""
    path = tmp_path / "m.png"
    pixels = np.full((8, 8, 4), 255, np.uint8)
    pixels[2:5, 1:7, 3] = 0
    pixels[2:5, 1:4, :3] = 0  # what colour lies below does not show
    picture(path, pixels)
    mask = Inpainting((3, 8, 8), kind="file", mask=str(path)).mask
    expected = torch.ones(1, 8, 8, dtype=torch.float64)
    expected[:, 2:5, 1:7] = 0
    assert torch.equal(mask, expected)
    with pytest.raises(ValueError, match="transparent"):
        read_array(path, "kernel")
    for change in (lambda p: p[0, 0].__setitem__(slice(3), 0), lambda p: p[0, 0].__setitem__(3, 128)):
        other = pixels.copy()
        change(other)
        picture(path, other)
        with pytest.raises(ValueError, match="transparen|holds 2 values"):
            Inpainting((3, 8, 8), kind="file", mask=str(path))


# -- which files ----------------------------------------------------------------------------------------------------------


def test_hidden_files_are_left_out_and_links_that_lead_nowhere_are_told(tmp_path):
    picture(tmp_path / "one.png")
    (tmp_path / "._one.png").write_bytes(b"\0\5\x16\7" + bytes(4000))
    (tmp_path / ".hidden.png").write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "lost.png").symlink_to("nowhere.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    os.mkfifo(tmp_path / "pipe.png")  # would be waited for
    (tmp_path / "empty.png").write_bytes(b"")
    for root in (str(tmp_path), f"{tmp_path}/*.png", f"{tmp_path}/.*", f"{tmp_path}/**/*"):
        if root.endswith(".*"):
            with pytest.raises(ConfigError, match="no images there"):
                find_files(root)
            continue
        items = {item.id: item.problem for item in Images(root).items()}
        assert (
            set(items) == {"one", "lost", "loop", "pipe", "empty"} and not items["one"] and all(items[key] for key in items if key != "one")
        )


def test_names_that_are_no_utf8_are_told(tmp_path):
    picture(tmp_path / "good.png")
    with open(os.fsencode(tmp_path) + b"/caf\xe9.png", "wb") as file:
        file.write((tmp_path / "good.png").read_bytes())
    items = Images(str(tmp_path)).items()
    assert [(item.id, bool(item.problem)) for item in items] == [("caf%E9", True), ("good", False)]
    assert r"caf\\xe9.png" in items[0].problem
    str(items[0]).encode()


@pytest.mark.parametrize("root", ["a\0b", "x" * 5000, "caf\udce9", "[", "**", "~nobody/x"])
def test_names_of_nothing(tmp_path, monkeypatch, root):
    monkeypatch.chdir(tmp_path)
    for make in (lambda: Images(root).items(), lambda: Measurement(root).items(), lambda: MRIData(root, "max").items()):
        with pytest.raises(ConfigError) as caught:
            make()
        str(caught.value).encode()


# -- grey, arrays, k-space ------------------------------------------------------------------------------------------------


def test_truths_in_arrays(tmp_path):
    for name, value in (("grey", Y[0]), ("one", Y[:1]), ("three", Y), ("double", Y.astype(">f8"))):
        np.save(tmp_path / f"{name}.npy", value)
        (item,) = Images(str(tmp_path / f"{name}.npy")).items()
        expected = np.broadcast_to(value.astype(np.float32), (3, 8, 8))
        assert item.image_shape == (3, 8, 8) and item.grey == (name in ("grey", "one"))
        np.testing.assert_array_equal(read_item(item)[1], expected)
        cropped = Images(str(tmp_path / f"{name}.npy"), size=4, fit="crop").items()[0]
        np.testing.assert_array_equal(read_item(cropped)[1], expected[:, 2:6, 2:6])
        assert read_item(Images(str(tmp_path / f"{name}.npy"), size=4).items()[0])[1].shape == (3, 4, 4)
    assert len(Images(str(tmp_path)).items()) == 4
    picture(tmp_path / "a.png")
    assert [item.id for item in Images(str(tmp_path)).items()] == ["a"]  # arrays beside pictures are something else
    for value, told in (
        ((255 * np.abs(Y)).astype(np.uint8), "uint8 values from .*bytes"), (Y.transpose(1, 2, 0), r"\(3, H, W\)"), (Y + 1, r"\[-1, 1\]"),
        (Y + 0j, "a real one"), (Y * np.nan, "NaN"),
    ):  # fmt: skip
        np.save(tmp_path / "bad.npy", value)
        assert pytest.raises(ConfigError, read_item, Images(str(tmp_path / "bad.npy")).items()[0]).match(told)


def test_channels(tmp_path):
    picture(tmp_path / "colour.png")
    picture(tmp_path / "grey.png", PIXELS[..., 0])
    colour, grey = (str(tmp_path / name) for name in ("colour.png", "grey.png"))
    luma = (PIXELS @ np.array([0.299, 0.587, 0.114]) / 127.5 - 1)[None]
    np.testing.assert_allclose(read_item(Images(colour, channels=1).items()[0])[1], luma, atol=1e-6)
    np.testing.assert_allclose(read_item(Images(grey, channels=1).items()[0])[1], PIXELS[None, ..., 0] / 127.5 - 1, atol=1e-6)
    for file, channels, shape, is_grey in ((colour, None, 3, False), (grey, None, 3, True), (grey, 3, 3, False), (colour, 1, 1, False)):
        (item,) = Images(file, channels=channels).items()
        assert (item.image_shape[0], item.grey, len(read_item(item)[1])) == (shape, is_grey, shape)


def test_undersampled_kspace_is_no_truth(tmp_path):
    import h5py

    lines = np.zeros(8, np.float32)
    lines[::2] = 1
    volume(tmp_path / "test.h5", mask=lines)
    volume(tmp_path / "full.h5", mask=np.ones(8, np.float32))
    with pytest.raises(ConfigError, match="dataset `mask`"):
        MRIData(str(tmp_path / "test.h5"), "max").items()
    assert len(MRIData(str(tmp_path / "full.h5"), "max").items()) == 2
    items = MRIData(str(tmp_path), "max").items()
    assert [(item.id, bool(item.problem)) for item in items] == [("full_000", False), ("full_001", False), ("test", True)]
    kspace = RNG.normal(size=(8, 8)) + 1j * RNG.normal(size=(8, 8))
    for hidden, told in ((np.s_[:, 3], "1 of 8 columns"), (np.s_[2:4], "2 of 8 rows"), (np.s_[:, :2], None), (np.s_[:, -1:], None)):
        some = kspace.copy()
        some[hidden] = 0
        np.save(tmp_path / "k.npy", some)
        (item,) = MRIData(str(tmp_path / "k.npy"), "max").items()
        if told is None:
            assert read_item(item)[1].shape == (2, 8, 8)  # zeros outside are padding
        else:
            assert pytest.raises(ConfigError, read_item, item).match(told)
    with h5py.File(tmp_path / "group.h5", "w") as file:
        file.create_group("kspace")
    with pytest.raises(ConfigError, match="is a group"):
        MRIData(str(tmp_path / "group.h5"), "max").items()
