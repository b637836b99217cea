"""Every kind of picture comes out as 8-bit RGB the right way up, or with a reason why it cannot be used."""

import zlib

import numpy as np
import pytest
from data_helpers import encoded, picture, put
from PIL import Image, ImageCms, features

from trainers.data import images
from trainers.data.images import UnreadablePicture, load_picture

BLUE, RED = (0, 0, 255), (200, 80, 40)


def close(a, b, tolerance=6):
    return max(abs(x - y) for x, y in zip(a, b, strict=True)) <= tolerance


@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "bmp", "gif", "tif", "avif"])
def test_formats(tmp_path, kind):
    if kind in ("webp", "avif") and not features.check(kind):
        pytest.skip(f"this Pillow has no {kind}")
    save = {"quality": 95} if kind in ("jpg", "webp", "avif") else {}
    rgb, alpha = load_picture(put(tmp_path / f"a.{kind}", **save))
    assert rgb.mode == "RGB" and rgb.size == (64, 64) and alpha is None
    assert close(rgb.getpixel((50, 50)), RED, 12) and close(rgb.getpixel((4, 4)), BLUE, 12)


@pytest.mark.parametrize("orientation, corner", [(1, (2, 2)), (2, (37, 2)), (3, (37, 17)), (6, (17, 2)), (8, (2, 37))])
def test_exif_orientation(tmp_path, orientation, corner):
    exif = Image.Exif()
    exif[0x0112] = orientation
    rgb, _ = load_picture(put(tmp_path / "a.png", image=picture((40, 20)), exif=exif))
    assert rgb.size == ((40, 20) if orientation < 5 else (20, 40))
    assert rgb.getpixel(corner) == BLUE


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_is_ignored(tmp_path):
    path = put(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")
    assert load_picture(path)[0].size == (64, 64)


def test_transparency_is_laid_on_white_and_returned(tmp_path):
    image = picture(mode="RGBA")
    image.putalpha(Image.linear_gradient("L").resize((64, 64)))
    rgb, alpha = load_picture(put(tmp_path / "a.png", image=image))
    assert close(rgb.getpixel((40, 0)), (255, 255, 255)) and close(rgb.getpixel((40, 63)), RED)
    assert alpha.getpixel((0, 0)) < 5 and alpha.getpixel((0, 63)) > 250


def test_opaque_alpha_counts_as_none(tmp_path):
    assert load_picture(put(tmp_path / "a.png", image=picture(mode="RGBA")))[1] is None


def test_palette_with_transparency(tmp_path):
    image = picture().quantize(8)
    rgb, alpha = load_picture(put(tmp_path / "a.png", image=image, transparency=image.getpixel((50, 50))))
    assert rgb.getpixel((50, 50)) == (255, 255, 255) and alpha.getpixel((50, 50)) == 0
    assert close(rgb.getpixel((4, 4)), BLUE) and alpha.getpixel((4, 4)) == 255


def test_grey_with_alpha(tmp_path):
    image = Image.merge("LA", (Image.new("L", (16, 16), 10), Image.new("L", (16, 16), 0)))
    rgb, alpha = load_picture(put(tmp_path / "a.png", image=image))
    assert rgb.getpixel((3, 3)) == (255, 255, 255) and alpha.getextrema() == (0, 0)


def test_cmyk(tmp_path):
    rgb, _ = load_picture(put(tmp_path / "a.jpg", image=picture(mode="CMYK"), quality=95))
    assert close(rgb.getpixel((50, 50)), RED, 12)


@pytest.mark.parametrize("kind", ["png", "tif"])
def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path, kind):
    values = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / f"a.{kind}")
    rgb, _ = load_picture(tmp_path / f"a.{kind}")
    got = np.asarray(rgb)[..., 0].astype(int)
    assert np.abs(got - np.rint(values / 257.0)).max() <= 1


def test_float_tiff(tmp_path):
    Image.fromarray(np.full((16, 16), 0.5, dtype=np.float32)).save(tmp_path / "a.tif")
    assert load_picture(tmp_path / "a.tif")[0].getpixel((0, 0)) == (128, 128, 128)


def test_black_and_white(tmp_path):
    assert load_picture(put(tmp_path / "a.png", image=picture(mode="1")))[0].mode == "RGB"


def test_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert load_picture(tmp_path / "a.gif")[0].getpixel((0, 0)) == (255, 0, 0)


def test_colour_profile_is_applied(tmp_path):
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    path = put(tmp_path / "a.png", icc_profile=lab)
    assert close(load_picture(path)[0].getpixel((50, 50)), RED, 1)
    broken = put(tmp_path / "b.png", icc_profile=b"no profile at all")
    assert load_picture(broken)[0].getpixel((50, 50)) == RED


@pytest.mark.parametrize(
    "data, reason",
    [
        (b"", "empty"),
        (b"this is no picture", "damaged"),
        (encoded(picture((64, 64)))[:120], "cut short"),
        (encoded(picture((256, 256)), "JPEG")[:-400], "cut short"),
        (encoded(picture((64, 64)), "GIF")[:60], "damaged"),
        (encoded(Image.new("RGB", (4, 400))), "too small"),
    ],
)
def test_unusable_pictures_say_why(tmp_path, data, reason):
    with pytest.raises(UnreadablePicture, match=reason):
        load_picture(put(tmp_path / "a.png", image=data))


def test_gigantic_pictures_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    data = bytearray(encoded(Image.new("1", (8, 8))))
    data[16:24] = (40000).to_bytes(4, "big") * 2  # the header claims 1.6 billion pixels
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    with pytest.raises(UnreadablePicture, match="million pixels"):
        load_picture(put(tmp_path / "a.png", image=bytes(data)))
    monkeypatch.setattr(images, "MAX_PIXELS", 1000)
    with pytest.raises(UnreadablePicture, match="64 x 64 has more than"):
        load_picture(put(tmp_path / "b.png"))


def test_missing_file(tmp_path):
    with pytest.raises(UnreadablePicture, match="cannot be opened"):
        load_picture(tmp_path / "none.png")
