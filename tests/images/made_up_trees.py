"""Small trees in the shape of published sets, with the files that trip readers up."""

import io
import json
import os
import tarfile
import zipfile

import numpy as np
from PIL import Image

from dna_probe.images.manifests import write_manifest

# name -> why it cannot be read, "" where it can.
NASTY = {
    "truncated.jpg": "truncated: the file ends too early",
    "cmyk.jpg": "",
    "sixteen.png": "",
    "palette.png": "",
    "turned.jpg": "",
    "a.b.jpg": "",
    "upper.JPEG": "",
    "anim.gif": "",
    "empty.jpg": "empty file (0 bytes)",
    "grüße_日本.png": "",
}
UNREADABLE = {name for name, reason in NASTY.items() if reason}


def picture(seed, size=(12, 10)):
    """A picture unlike that of any other seed."""
    rng = np.random.default_rng(abs(hash_of(seed)))
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def hash_of(seed):
    import zlib

    return zlib.crc32(str(seed).encode())


def encoded(seed, kind="PNG", **options):
    buffer = io.BytesIO()
    picture(seed).save(buffer, kind, **options)
    return buffer.getvalue()


def plant(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(name, "PNG" if path.suffix == ".png" else "JPEG"))
    return root


def plant_nasty(folder):
    folder.mkdir(parents=True, exist_ok=True)
    seed = folder.as_posix()[-20:]
    whole = encoded(f"{seed} truncated", "JPEG", quality=95)
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) - 60])
    picture(f"{seed} cmyk").convert("CMYK").save(folder / "cmyk.jpg")
    grey = np.random.default_rng(hash_of(seed)).integers(0, 65536, (10, 12)).astype(np.uint16)
    Image.fromarray(grey).save(folder / "sixteen.png")
    palette = picture(f"{seed} palette").convert("P")
    palette.info["transparency"] = 3
    palette.save(folder / "palette.png", transparency=3)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(f"{seed} turned").save(folder / "turned.jpg", exif=exif)
    picture(f"{seed} dotted").save(folder / "a.b.jpg")
    picture(f"{seed} upper").save(folder / "upper.JPEG")
    frames = [picture(f"{seed} frame {n}") for n in range(2)]
    frames[0].save(folder / "anim.gif", save_all=True, append_images=frames[1:])
    (folder / "empty.jpg").write_bytes(b"")
    picture(f"{seed} unicode").save(folder / "grüße_日本.png")


def zip_up(root, archive):
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
        for path in sorted(root.rglob("*")):
            if path.is_file():
                opened.write(path, path.relative_to(root).as_posix())
    return archive


def write_tar(archive, members):
    """`members`: name -> bytes, text or an object to write as JSON."""
    with tarfile.open(archive, "w") as opened:
        for name, content in members.items():
            if isinstance(content, dict):
                content = json.dumps(content)
            content = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(content)
            opened.addfile(info, io.BytesIO(content))
    return archive


def write_parquet(path, rows, **options):
    import pyarrow as pa
    import pyarrow.parquet as parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist(rows), path, **options)
    return path


def told(image_set, root=None):
    """Below the root or archive: path -> (label, generator, split)."""
    rows = zip(image_set.names, image_set.labels.tolist(), image_set.generators, image_set.splits, strict=True)
    return {short(name, root): (label, maker, split) for name, label, maker, split in rows}


def groups_of(image_set, root=None):
    return {short(name, root): group for name, group in zip(image_set.names, image_set.groups, strict=True)}


def short(name, root):
    name = name.rpartition("::")[2]
    return os.path.relpath(name, root) if root is not None and os.path.isabs(name) else name


def everything(image_set):
    """All of a set but where it came from, comparable."""
    names = [os.path.realpath(name) for name in image_set.names]
    sources = [source if not hasattr(source, "archive") else type(source) for source in image_set.images]
    return {
        "names": names,
        "kinds": [type(source) for source in sources],
        "labels": image_set.labels.tolist(),
        "generators": image_set.generators,
        "splits": image_set.splits,
        "groups": image_set.groups,
        "dates": image_set.dates,
    }


def assert_reads_back(image_set, *manifests):
    """Written to each of these manifests, the images that can be read are read back equal; returns them."""
    from dna_probe.images.layouts import read_images

    for manifest in manifests:
        written = write_manifest(image_set, manifest)
        assert everything(read_images(manifest)) == everything(written)
    return written
