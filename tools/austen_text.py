#!/usr/bin/env python3
"""Write the demo's text: the six novels of Jane Austen (public domain) as one UTF-8 file.

  tools/austen_text.py OUT.txt                  find the installed package, else fetch it with `apt-get download`
  tools/austen_text.py OUT.txt --deb FILE.deb   take this package file
  tools/austen_text.py OUT.txt --folder DIR     take an unpacked package (any folder that holds janeaustenr/data)

The Debian package r-cran-janeaustenr keeps each novel as an R vector of lines in a lazy-load data base: Rdata.rdx (a
gzipped R list: name -> offset and length) and Rdata.rdb (at each offset: the unpacked size in 4 bytes, then zlib data).
Neither R nor root is needed. The result has the novels in the order of their names, a form feed between two of them,
one line a paragraph and an empty line between paragraphs. Needs python3 (standard library only) and dpkg, and apt-get
for the first form.
"""
import argparse
import contextlib
import os
import pathlib
import shutil
import struct
import subprocess
import sys
import tempfile
import unicodedata
import zlib

PACKAGE = "r-cran-janeaustenr"
INSTALLED = pathlib.Path("/usr/lib/R/site-library/janeaustenr")
NOVELS = ["emma", "mansfieldpark", "northangerabbey", "persuasion", "prideprejudice", "sensesensibility"]
BYTES_EXPECTED = (3_700_000, 4_300_000)  # version 1.0.0 gives about 4.0 million


class Fault(Exception):
    """What went wrong, where, and how to mend it."""

    def __init__(self, what, where, mend):
        super().__init__(f"{what}\n  where: {where}\n  mend: {mend}")


class RReader:
    """Reads the values that these files use from R's XDR serialisation ("R Internals", section 1.8)."""

    SYMBOL, PAIRLIST, CHARS, LOGICAL, INTEGER, STRINGS, LIST, NIL, REFERENCE = 1, 2, 9, 10, 13, 16, 19, 254, 255

    def __init__(self, data):
        self.data, self.at, self.symbols = data, 0, []
        if self.take(2) != b"X\n":
            raise ValueError("no XDR header")
        version, _, _ = self.int(), self.int(), self.int()
        if version == 3:
            self.take(self.int())  # name of the encoding that the writer had
        elif version != 2:
            raise ValueError(f"serialisation version {version}")

    def take(self, size):
        if size < 0 or self.at + size > len(self.data):
            raise ValueError(f"ends inside a value at byte {self.at}")
        self.at += size
        return self.data[self.at - size:self.at]

    def int(self):
        return struct.unpack(">i", self.take(4))[0]

    def read(self):
        flags = self.int()
        kind, has_attributes = flags & 255, flags & 0x200
        if kind == self.NIL:
            return None
        if kind == self.REFERENCE:
            return self.symbols[(flags >> 8 or self.int()) - 1]
        if kind == self.SYMBOL:
            self.symbols.append(self.read())
            return self.symbols[-1]
        if kind == self.CHARS:
            size = self.int()
            return None if size == -1 else self.take(size).decode("utf-8" if flags >> 12 & 8 else "latin-1")
        if kind == self.PAIRLIST:
            return self.pairlist(flags)
        if kind in (self.LOGICAL, self.INTEGER):
            value = [self.int() for _ in range(self.int())]
        elif kind in (self.STRINGS, self.LIST):
            value = [self.read() for _ in range(self.int())]
        else:
            raise ValueError(f"value of type {kind} at byte {self.at}")
        if has_attributes:
            attributes = self.read()
            if "names" in attributes:
                return dict(zip(attributes["names"], value))
        return value

    def pairlist(self, flags):
        """A pair list with tags as a dict."""
        pairs = {}
        while flags & 255 == self.PAIRLIST:
            if flags & 0x200:
                self.read()  # attributes of the list itself
            tag = self.read() if flags & 0x400 else None
            pairs[tag] = self.read()
            flags = self.int()
        if flags & 255 != self.NIL:
            raise ValueError(f"a pair list without end at byte {self.at}")
        return pairs


def read_novels(data_folder):
    """name -> list of lines."""
    index_path, base_path = data_folder / "Rdata.rdx", data_folder / "Rdata.rdb"
    try:
        index = RReader(zlib.decompress(index_path.read_bytes(), wbits=47)).read()
        base = base_path.read_bytes()
        novels = {}
        for name, (offset, length) in index["variables"].items():
            block = base[offset:offset + length]
            text = zlib.decompress(block[4:])
            if len(text) != struct.unpack(">I", block[:4])[0]:
                raise ValueError(f"{name} unpacks to {len(text)} bytes, not to the size beside it")
            novels[name] = RReader(text).read()
    except (OSError, ValueError, KeyError, TypeError, IndexError, struct.error, zlib.error, RecursionError) as error:
        raise Fault(f"cannot read the novels: {error}", str(data_folder),
                    f"fetch the package {PACKAGE} again; version 1.0.0 is known to work") from error
    missing = [name for name in NOVELS if name not in novels]
    if missing:
        raise Fault(f"no {', '.join(missing)} among {', '.join(novels)}", str(index_path),
                    f"use the package {PACKAGE} of Debian 12")
    return novels


def clean(lines):
    """One line a paragraph, an empty line between two, no blanks at the ends or doubled; NFC."""
    paragraphs, words = [], []
    for line in [*lines, ""]:
        found = unicodedata.normalize("NFC", line or "").split()
        words += found
        if not found and words:
            paragraphs.append(" ".join(words))
            words = []
    return "\n\n".join(paragraphs) + "\n"


def find_data(folder):
    found = sorted(folder.glob("**/janeaustenr/data")) or sorted(folder.glob("data"))
    if not found or not (found[0] / "Rdata.rdx").is_file():
        raise Fault("no janeaustenr/data/Rdata.rdx below this folder", str(folder),
                    f"give a folder made by `dpkg -x {PACKAGE}_*.deb FOLDER`")
    return found[0]


def run(command, cwd, mend):
    try:
        subprocess.run(command, cwd=cwd, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    except FileNotFoundError as error:
        raise Fault(f"{command[0]} is not installed", " ".join(command), mend) from error
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip() or f"exit {error.returncode}").splitlines()[-1]
        raise Fault(f"{command[0]} failed: {last}", " ".join(command), mend) from error


def fetch_package(folder):
    """Downloads the package into `folder` and returns its path."""
    os.chmod(folder, 0o755)
    if os.geteuid() == 0:
        # apt fetches as its own user when root asks, so the folder must be that user's.
        with contextlib.suppress(LookupError, PermissionError):
            shutil.chown(folder, user="_apt")
    run(["apt-get", "-qq", "download", PACKAGE], folder,
        f"run `apt-get update` once as root, or download {PACKAGE} elsewhere and use --deb FILE")
    return next(folder.glob("*.deb"))


def novels_of(arguments):
    """The novels and where they came from."""
    if arguments.folder:
        return read_novels(find_data(arguments.folder)), str(arguments.folder)
    if not arguments.deb and (INSTALLED / "data" / "Rdata.rdx").is_file():
        return read_novels(INSTALLED / "data"), str(INSTALLED)
    with tempfile.TemporaryDirectory(prefix="austen_text_") as temporary:
        folder = pathlib.Path(temporary)
        package = arguments.deb or fetch_package(folder)
        if not package.is_file():
            raise Fault("no such file", str(package), "check the path after --deb")
        unpacked = folder / "unpacked"
        run(["dpkg", "-x", str(package.resolve()), str(unpacked)], folder, f"give the .deb file of {PACKAGE}")
        return read_novels(find_data(unpacked)), package.name


def write_text(path, text):
    """Writes beside the target, then renames: never half a file."""
    aside = path.with_name(f"{path.name}.tmp{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(text)
        os.replace(aside, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise Fault(f"cannot write: {error.strerror}", str(path), "check the folder and the free space") from error


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path, metavar="OUT.txt")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--deb", type=pathlib.Path, metavar="FILE.deb")
    source.add_argument("--folder", type=pathlib.Path, metavar="DIR")
    arguments = parser.parse_args()
    novels, origin = novels_of(arguments)
    parts = {name: clean(novels[name]) for name in NOVELS}
    text = "\f".join(parts.values()).encode("utf-8")
    low, high = BYTES_EXPECTED
    if not low <= len(text) <= high:
        raise Fault(f"{len(text)} bytes of text, {low} to {high} expected", origin,
                    f"use the package {PACKAGE} of Debian 12 (version 1.0.0)")
    write_text(arguments.out, text)
    for name, part in parts.items():
        title = part.split("\n", 1)[0]
        print(f"  {len(part.encode()):>9,} bytes  {part.count(chr(10) * 2) + 1:>5,} paragraphs  {name}: {title}")
    print(f"  {len(text):>9,} bytes  {len(text.split()):,} words from {origin} -> {arguments.out}")


if __name__ == "__main__":
    try:
        main()
    except Fault as fault:
        sys.exit(f"austen_text: {fault}")
