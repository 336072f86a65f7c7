"""`python -m benchmarks list | run | report | compare | gpu | keep | readme`."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from benchmarks.cases import SUITES, default_suites

OUT = Path("out/bench")


def list_cases(options: argparse.Namespace) -> int:
    """Print suites, cases and providers."""
    from benchmarks.providers import PROVIDERS

    for suite in SUITES.values():
        print(f"{suite.name} ({suite.device}): {suite.about}\n  by {', '.join(suite.providers)}")
        for case in suite.cases:
            against = "" if case.against[0] == "provider" else f", against {'='.join(map(str, case.against))}"
            print(
                f"  {case.name:<14} B={case.batch} {case.dtype} {case.activation} {case.direction}, "
                f"{case.threads} thread(s){against}"
            )
    print("providers:")
    for provider in PROVIDERS.values():
        print(f"  {provider.name:<17} {provider.about}")
    return 0


def run(options: argparse.Namespace) -> int:
    """Measure suites into a CSV file and print the tables; 1 if an answer was wrong."""
    import torch

    from benchmarks import report
    from benchmarks import run as runner
    from benchmarks.measure import Meter
    from benchmarks.results import newest
    from benchmarks.tables import Rows

    start = time.monotonic()
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1)
    meter = Meter(device, seconds=options.seconds, compile_seconds=options.compile_seconds)
    names = [name for suite in options.suites for name in (default_suites(device) if suite == "default" else [suite])]
    cases = [case for name in names or default_suites(device) for case in SUITES[name].cases]
    out: Path = options.out / "results.csv"
    out.unlink(missing_ok=True)
    rows = runner.run(cases, out, meter, options.providers, start + options.limit)
    wrong = sum(row.status == "FAIL" for row in rows)
    print(f"\n{len(rows)} rows, {wrong or 'none'} wrong, in {time.monotonic() - start:.0f} s: {out}")
    for path in report.write([out], options.out) if options.report else ():
        print(path)
    print(f"\n{report.note(rows)}\n\n{report.summary(Rows(newest(rows)))}")
    return int(wrong > 0)


def write_report(options: argparse.Namespace) -> int:
    """Write report.md and pictures from CSV files; measures nothing."""
    from benchmarks import report

    folder = options.to or (options.sources[0] if options.sources[0].is_dir() else options.sources[0].parent)
    for path in report.write(options.sources, folder, not options.no_pictures):
        print(path)
    return 0


def gpu(options: argparse.Namespace) -> int:
    """All the evidence that a CUDA device can give in nine minutes; 1 if a step failed, 2 if there is no device."""
    from benchmarks.gpu_run import driver, plan

    if options.plan:
        print(plan.table())
        return 0
    if options.out is None:
        raise ValueError("gpu: expected a folder for the results, got none; python -m benchmarks gpu OUT")
    return driver.main(options.out, options.stand_in, options.limit)


def compare(options: argparse.Namespace) -> int:
    """Ratios between two CSV files, and what moved by more than the noise."""
    from benchmarks import compare as comparison
    from benchmarks.results import read

    print(comparison.table(read([options.a]), read([options.b])))
    return 0


def keep(options: argparse.Namespace) -> int:
    """Append a run's rows to the committed results of its device."""
    from benchmarks import evidence

    print(evidence.keep(options.out / "results.csv"))
    return 0


def readme(options: argparse.Namespace) -> int:
    """Write README's tables from the committed results; with --check, 1 if they differ."""
    from benchmarks import evidence

    return evidence.update_readme(check=options.check)


def parser() -> argparse.ArgumentParser:
    commands = argparse.ArgumentParser(prog="python -m benchmarks", description="Measures the mixer and the networks.")
    sub = commands.add_subparsers(required=True, metavar="command")

    sub.add_parser("list", help=list_cases.__doc__).set_defaults(command=list_cases)

    one = sub.add_parser("run", help=run.__doc__)
    one.set_defaults(command=run)
    one.add_argument(
        "suites", nargs="*", choices=[*SUITES, "default", []], help="see list; default: those of the device"
    )
    one.add_argument("--out", type=Path, default=OUT, help="folder for results.csv")
    one.add_argument("--providers", nargs="+", help="default: those of the suite")
    one.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    one.add_argument("--seconds", type=float, default=0.3, help="of timing per provider and case")
    one.add_argument("--compile-seconds", type=float, default=45, help="for all compilations together")
    one.add_argument("--limit", type=float, default=float("inf"), help="seconds after which no further case is started")
    one.add_argument("--report", action="store_true", help="write report.md and pictures too")

    two = sub.add_parser("report", help=write_report.__doc__)
    two.set_defaults(command=write_report)
    two.add_argument("sources", nargs="*", type=Path, default=[OUT], help="CSV files or folders of them")
    two.add_argument("--no-pictures", action="store_true")
    two.add_argument("--to", type=Path, help="folder to write to; default: the first source's")

    three = sub.add_parser("gpu", help=gpu.__doc__)
    three.set_defaults(command=gpu)
    three.add_argument("out", type=Path, nargs="?", help="folder for report.md, results.csv, log and pictures")
    three.add_argument("--stand-in", action="store_true", help="rehearse on the CPU with tiny shapes")
    three.add_argument("--plan", action="store_true", help="print the steps with their limits, and run nothing")
    three.add_argument("--limit", type=float, default=540, help="seconds for everything")

    four = sub.add_parser("compare", help=compare.__doc__)
    four.set_defaults(command=compare)
    four.add_argument("a", type=Path)
    four.add_argument("b", type=Path)

    five = sub.add_parser("keep", help=keep.__doc__)
    five.set_defaults(command=keep)
    five.add_argument("out", type=Path, help="folder of a run")

    six = sub.add_parser("readme", help=readme.__doc__)
    six.set_defaults(command=readme)
    six.add_argument("--check", action="store_true")
    return commands


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    try:
        return int(options.command(options))
    except (FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
