"""The command `python -m advnb`: look after the machine, fetch data, make what ships."""

from __future__ import annotations

import argparse
import logging
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd


def parser() -> argparse.ArgumentParser:
    """Every subcommand with its arguments; `run` is what it calls."""
    top = argparse.ArgumentParser(prog="python -m advnb", description=__doc__)
    names = "{blindspots,doctor,data,distances,fonts,sweep,vaegan,zoo}"
    rooms = top.add_subparsers(required=True, metavar=names)

    doctor = rooms.add_parser("doctor", help="is this machine ready? exit code 1 if not")
    doctor.set_defaults(run=_doctor)

    spots = rooms.add_parser("blindspots", help="tables 2 to 5 of Z, for the zoo's models")
    spots.add_argument("model", nargs="*", help="default: all defended models of MNIST and Fashion")
    spots.add_argument("--images", type=int, default=2000, help="test images (Z: 2,000)")
    spots.add_argument("--attack", default="cw", help="cw (Z's own), pgd-5 or pgd")
    spots.add_argument("--device", default="cpu", help="cpu, cuda or mps")
    spots.add_argument("--cache", help="where finished columns lie (default: the user's cache)")
    spots.add_argument("--out", help="a .csv to write the table to")
    spots.set_defaults(run=_blindspots)

    data = rooms.add_parser("data", help="fetch data sets ahead of a class")
    data.add_argument("name", nargs="+", help="mnist, fashion, emnist, cifar10, gtsrb, celeba")
    data.set_defaults(run=_data)

    far = rooms.add_parser("distances", help="success against distance, and table 1, of Z")
    far.add_argument("data", nargs="*", help="mnist, fashion, ... (default: all that are here)")
    far.add_argument("--profile", help="smoke, course or paper (default: ADVNB_PROFILE)")
    far.add_argument("--device", default="cpu", help="cpu, cuda or mps")
    far.add_argument("--out", help="a folder to write distances.csv and divergence.csv to")
    far.set_defaults(run=_distances)

    fonts = rooms.add_parser("fonts", help="the glyph atlas that FONTS is made from")
    verbs = fonts.add_subparsers(required=True)
    build = verbs.add_parser("build", help="render A to J from every usable face")
    build.add_argument("folder", nargs="+", help="searched for .ttf, .otf and .ttc files")
    build.add_argument("--out", help="the atlas to write (default: the package's own)")
    build.add_argument("--seed", type=int, default=0, help="decides the order of the faces")
    build.set_defaults(run=_fonts_build)

    curves = rooms.add_parser("sweep", help="S's generalization curves, cell by cell")
    curves.add_argument("data", help="fonts, mnist, fashion, ... or an .npz")
    curves.add_argument("--profile", help="smoke, course or paper (default: ADVNB_PROFILE)")
    curves.add_argument("--workers", type=int, default=1, help="processes side by side")
    curves.add_argument("--recipe", nargs="+", help="strategies (default: the figure's own)")
    curves.add_argument("--attack", nargs="+", help="what is measured (default: the figure's own)")
    curves.add_argument("--model", help="the network (default: CNN, or the figure's own)")
    curves.add_argument("--figure", help="of S's supplement, on fonts: models, l2, transfer, ...")
    curves.add_argument("-n", type=int, nargs="+", help="training images")
    curves.add_argument("--seed", type=int, nargs="+")
    curves.add_argument("--device", default="cpu", help="cpu, cuda or mps")
    curves.add_argument("--cache", help="where finished cells lie (default: the user's cache)")
    curves.add_argument("--out", help="a .csv to write the table to")
    curves.set_defaults(run=_sweep)

    vaegan = rooms.add_parser("vaegan", help="the generative models of learned manifolds")
    verbs = vaegan.add_subparsers(required=True)
    learn = verbs.add_parser("train", help="learn the manifold of a data set, class after class")
    learn.add_argument("data", help="its name, or an .npz")
    learn.add_argument("--kind", default="flow", help="flow (default), or vaegan: S's")
    learn.add_argument("--width", type=int, default=16, help="channels (S: 64)")
    learn.add_argument("--kernel", type=int, default=4, help="of the decoder (S: 6)")
    learn.add_argument("--steps", type=int, help="batches of 100 images a class")
    learn.add_argument("--shared", action="store_true", help="one model for all classes")
    learn.add_argument("--seed", type=int, default=0)
    learn.add_argument("--out", help="the file to write (default: the package's own)")
    learn.set_defaults(run=_vaegan_train)
    against = verbs.add_parser("compare", help="both kinds, equal time, three seeds")
    against.add_argument("data")
    against.add_argument("--out", required=True, help="a folder for the models and the table")
    against.set_defaults(run=_vaegan_compare)

    zoo = rooms.add_parser("zoo", help="the small trained models")
    verbs = zoo.add_subparsers(required=True)
    train = verbs.add_parser("train", help="make models and their cards again")
    train.add_argument("name", nargs="+")
    train.add_argument("--out", help="where to write them (default: the package's own folder)")
    train.add_argument("--device", default="cpu", help="cpu, cuda or mps")
    train.add_argument("--note", default="", help="a remark for the card, on the data say")
    train.set_defaults(run=_zoo_train)
    listing = verbs.add_parser("list", help="the models and their measured numbers")
    listing.set_defaults(run=_zoo_list)
    return top


def _doctor(args: argparse.Namespace) -> int:
    from . import doctor

    faults = 0
    for check, finding in doctor.examine():
        print(f"{'FAULT' if finding.mend else 'ok':6s}{check:11s}{finding.told}", flush=True)
        if finding.mend:
            faults += 1
            print(f"{'':17s}mend: {finding.mend}", flush=True)
    print(f"{faults} fault(s)" if faults else "all is well")
    return int(faults > 0)


def _blindspots(args: argparse.Namespace) -> int:
    from . import files, zoo
    from .blindspots import runs

    names = args.model or [name for name in runs.MODELS if zoo.made(name)]
    cells = [cell for name in names for cell in runs.wanted(name, args.images, args.attack)]
    _writable(args.out)
    table = runs.run(cells, device=args.device, cache=args.cache)
    rates = ["accuracy", "success", "success_scaled"]
    shown = ["model", "alpha", "beta", *rates, "n"]  # of failed columns there are no rates
    print(table.reindex(columns=shown).to_string(index=False))
    if args.out:
        files.write(args.out, lambda path: table.to_csv(path, index=False))
    return _failures(table, "columns")


def _data(args: argparse.Namespace) -> int:
    from . import data

    for name in args.name:
        if name not in data.TITLES:
            data.load(name)  # an unknown name is told before hours are spent on the known ones
    failed = 0
    for name in args.name:
        try:
            loaded = data.load(name)
        except (ValueError, OSError) as error:  # the others are fetched all the same
            print(f"advnb: {error}", file=sys.stderr)
            failed = 2
            continue
        place = name if name.endswith(".npz") else data.find(name) or "the package"
        print(f"{loaded} in {place}", flush=True)
    return failed


def _distances(args: argparse.Namespace) -> int:
    from functools import partial
    from pathlib import Path

    from . import comparisons, files, profiles

    _writable(args.out and f"{args.out}/distances.csv")
    size = profiles.profile(args.profile)
    names, failed, tables = args.data or comparisons.available(), 0, {}
    for file, make in (("distances", comparisons.cells), ("divergence", comparisons.plane_cells)):
        wanted = [cell for name in names for cell in make(name, size)]
        table = tables[file] = comparisons.run(wanted, device=args.device)
        failed |= _failures(table, "cells")
        if args.out:
            write = partial(table.to_csv, index=False)
            files.write(Path(args.out) / f"{file}.csv", write)
    if failed:
        return failed
    print(comparisons.table1(tables["distances"], tables["divergence"]).to_string())
    return 0


def _fonts_build(args: argparse.Namespace) -> None:
    from . import fonts, glyphs

    logging.getLogger("fontTools").setLevel(logging.ERROR)  # it reports every odd table
    faces = glyphs.build(args.folder, args.out or fonts.ATLAS, args.seed)
    print(f"{len(faces):,} usable faces; the first {fonts.N_FONTS:,} are FONTS, the rest unseen")
    if len(faces) < fonts.N_FONTS:
        raise ValueError(f"FONTS needs {fonts.N_FONTS:,} faces: name more folders")


def _sweep(args: argparse.Namespace) -> int:
    from . import curves, files, profiles, supplement

    if args.figure:
        if args.data != "fonts":
            raise ValueError(f"--figure is of fonts; got {args.data}")
        if args.profile:
            raise ValueError("--figure has the paper's sizes: leave --profile out")
        wanted = supplement.cells(
            args.figure, args.n or supplement.SIZES, args.seed or supplement.SEEDS
        )
        only = {"recipe": args.recipe, "attack": args.attack, "model": args.model and [args.model]}
        for kind, asked in only.items():
            have = {getattr(cell, kind) for cell in wanted}
            if odd := [name for name in asked or () if name not in have]:
                raise ValueError(f"figure {args.figure} has no {kind} {odd[0]}")
        cells = [c for c in wanted if all(v is None or getattr(c, k) in v for k, v in only.items())]
        if not cells:
            told = ", ".join(f"{k} {' '.join(v)}" for k, v in only.items() if v)
            raise ValueError(f"figure {args.figure} has no cells of {told}")
    else:
        cells = curves.figure(
            args.data, profiles.profile(args.profile), recipes=args.recipe, attacks=args.attack,
            n=args.n, seeds=args.seed, model=args.model or "CNN",
        )  # fmt: skip
    _writable(args.out)
    table = curves.run(cells, cache=args.cache, device=args.device, workers=args.workers)
    print(curves.summary(table).to_string())
    if args.out:
        files.write(args.out, lambda path: table.to_csv(path, index=False))
    return _failures(table, "cells")


def _vaegan_train(args: argparse.Namespace) -> None:
    from . import data, learned, quality, vaegan

    settings = vaegan.Settings(
        args.kind, args.width, args.kernel, args.steps, shared=args.shared, seed=args.seed
    )
    loaded = data.load(args.data)
    kind = learned.SHARED.replace("flow", args.kind) if args.shared else args.kind
    out = args.out or learned.FOLDER / f"{loaded.name}-{kind}.safetensors"
    _writable(out)
    manifold = quality.make(loaded, settings, out)
    print(f"{manifold} in {out}: {manifold.about['measured']}")


def _vaegan_compare(args: argparse.Namespace) -> None:
    from . import data, quality

    print(quality.compare(data.load(args.data), args.out).to_string())


def _zoo_train(args: argparse.Namespace) -> None:
    from pathlib import Path

    from . import zoo

    _writable(args.out and f"{args.out}/card")
    for name in args.name:
        zoo.entry(name)  # an unknown name is told before hours are spent on the known ones
    for name in args.name:
        folder = Path(args.out) if args.out else zoo.FOLDER
        _print_card(zoo.train(name, folder, note=args.note, device=args.device))


def _zoo_list(args: argparse.Namespace) -> None:
    from . import zoo

    for name in zoo.names():
        _print_card(zoo.card(name))


def _print_card(card: dict) -> None:
    for what in ("accuracy", "success"):
        number = card["measured"][what]
        print(
            f"{card['name']:24s} {what:9s} {number['value']:7.2%} "
            f"[{number['low']:.2%}, {number['high']:.2%}] (n = {number['n']:,})"
        )
    if card["note"]:
        print(f"{'':25s}{card['note']}")


def main(argv: list[str] | None = None) -> int:
    """Run one command; bad input and missing files are one line on stderr and exit code 2."""
    args = parser().parse_args(argv)
    try:
        return args.run(args) or 0
    except (ValueError, OSError) as error:
        print(f"advnb: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("advnb: stopped; what is finished is kept, the same command goes on", file=sys.stderr)
        return 130


def _writable(path: str | Path | None) -> None:
    """OSError where no file can be written at `path`: told before the work, not after it."""
    from pathlib import Path

    from . import files

    if path and Path(path).is_dir():
        raise OSError(f"{path} is a folder: name a file")
    if path:
        files.write(Path(path).with_name(f".{Path(path).name}.try"), Path.touch).unlink()


def _failures(table: pd.DataFrame, what: str) -> int:
    """Tell of cells that failed, each reason once; the exit code."""
    failed = table[table.error != ""]
    if len(failed):
        for reason in dict.fromkeys(failed.error.str.strip().str.split("\n").str[-1]):
            print(f"advnb: {reason}", file=sys.stderr)
        lasting = failed.error.str.contains("ValueError: ").all()  # they would fail again
        hint = "" if lasting else "; run it again"
        print(f"advnb: {len(failed)} of {len(table)} {what} failed{hint}", file=sys.stderr)
    return 2 if len(failed) else 0


if __name__ == "__main__":
    sys.exit(main())
