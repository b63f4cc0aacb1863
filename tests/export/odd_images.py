"""Files as people have them, and some that nobody should: 30 that can be read, and four that cannot."""

import numpy as np
from PIL import Image, ImageCms


def photograph(width: int, height: int, seed: int = 0) -> Image.Image:
    """Coarse colours under fine noise, from a palette of its own."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=float)
    return Image.fromarray(np.clip(smooth + rng.normal(0, 12, (height, width, 3)), 0, 255).astype(np.uint8))


def save_odd_images(folder):
    """Paths of all, readable ones first, and how many of them can be read."""
    paths = []

    def save(name, image, **settings):
        image.save(folder / name, **settings)
        paths.append(folder / name)

    for number, (width, height) in enumerate(
        [(8, 8), (8, 9), (32, 32), (31, 33), (35, 35), (200, 9), (9, 200), (1500, 40), (40, 1500), (1800, 1300)]
    ):
        save(f"{width}x{height}.png", photograph(width, height, number))
    one = photograph(90, 70, 20)
    for mode in ("L", "LA", "RGBA", "1", "P"):
        save(f"{mode}.png", one.convert(mode))
    alpha = one.convert("RGBA")
    alpha.putalpha(Image.linear_gradient("L").resize(one.size))
    save("transparent.png", alpha)
    save("palette.gif", one.quantize(16))
    save("deep.png", Image.fromarray(np.asarray(one.convert("L")).astype(np.uint16) * 257))
    save("deep.tif", Image.fromarray(np.asarray(one.convert("L")).astype(np.uint16) * 200))
    save("print.jpg", one.convert("CMYK"), quality=95)
    for turn in (3, 5, 6):
        exif = Image.Exif()
        exif[0x0112] = turn
        save(f"turned{turn}.jpg", one, exif=exif)
    save("coarse.jpg", one, quality=5)
    save("steps.jpg", one, progressive=True)
    save("web.webp", one)
    save("moving.gif", one, save_all=True, append_images=[photograph(90, 70, 21)])
    save("plain.bmp", one)
    save("profile.png", one, icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    save("white.ppm", Image.new("RGB", (50, 60), "white"))
    readable = len(paths)
    (folder / "cut.jpg").write_bytes((folder / "print.jpg").read_bytes()[:600])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("no image")
    paths += [folder / name for name in ("cut.jpg", "empty.png", "text.jpg")]
    save("strip.png", Image.new("RGB", (800_000, 8)))
    return paths, readable
