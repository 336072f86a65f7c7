"""Loops and paths of a kernel, and what they cost.

A loop that is to be counted names its trips in a comment on the line of its `for`:

    for (int tile = first; tile < tiles; tile += step) {  // trips: tiles

and whoever asks gives the number for "tiles". The kernel is compiled with `-lineinfo`, which changes no instruction;
the branch that closes a loop in machine code then leads back to that line. Such a loop must not be unrolled in part
(`#pragma unroll 1`). A loop without a name counts once and is reported.

Of paths that part and meet again, a warp is taken to go the longest; the count over all blocks, which is more than any
warp executes, is there too. Code of an activation (a branch `if constexpr (kActivation == Activation::kRelu)`, in any
file, or what a call with the template argument `Activation::kRelu` is inlined to) counts only if it is the one asked
for, and what is indented below a line with the comment `// rare` never does.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from benchmarks.static.costs import Cost
from benchmarks.static.sass import Block, Place, source_line

FEW = 8  # instructions
_TRIPS = re.compile(r"//.*\btrips: (\w+)")
_LOOP = re.compile(r"\b(for|while) \(")
_RARE = re.compile(r"//.*\brare\b")
_ARGUMENT = re.compile(r"Activation::k(\w+)[,>]")
_ACTIVATION = re.compile(r"if constexpr \(.*Activation == (?:\w+::)*Activation::k(\w+)\)")


def _regions(lines: list[str]) -> dict[int, str]:
    """The activation, or "rare", of every line that is for it alone; a region ends where the indentation does."""
    regions: dict[int, str] = {}
    name, indent = "", 0
    for number, text in enumerate(lines, 1):
        depth = len(text) - len(text.lstrip())
        if name and text.strip() and not text.startswith("#") and depth <= indent:
            name = ""
        if found := _ACTIVATION.search(text):
            name, indent = found[1], depth
        elif _RARE.search(text):
            name, indent = "rare", depth
        elif name:
            regions[number] = name
        elif argument := _ARGUMENT.search(text):
            regions[number] = argument[1]
    return regions


@dataclass
class Loop:
    header: int
    body: set[int]
    latches: list[int]
    name: str  # of its trips; empty: it has none
    line: str  # where it is, in words
    inner: list[Loop] = field(default_factory=list)


class Graph:
    """A kernel without the code of other activations and rare branches: its loops, and what they cost."""

    def __init__(
        self,
        blocks: list[Block],
        activation: str = "",  # as in C++ without its k, "Silu"; empty: count all of them
        whole: bool = False,  # leave nothing out
    ) -> None:
        self._lines: dict[str, list[str]] = {}
        self._regions: dict[str, dict[int, str]] = {}
        self._activation = activation
        self.blocks = blocks
        self.kept = set(range(len(blocks))) if whole else self._kept()

    def _kept(self) -> set[int]:
        """Blocks on some path from the entry to an end that meets no excluded block."""
        unavoidable = Graph(self.blocks, whole=True).unavoidable()
        good = {i for i, block in enumerate(self.blocks) if i in unavoidable or not self._excluded(block)}
        forward = self._closure({0} & good, lambda i: self.blocks[i].successors, good)
        before: dict[int, list[int]] = {i: [] for i in good}
        for i in good:
            for successor in self.blocks[i].successors:
                if successor in good:
                    before[successor].append(i)
        ends = {i for i in good if self.blocks[i].ends}
        return forward & self._closure(ends, lambda i: before[i], good)

    @staticmethod
    def _closure(start: set[int], neighbours, among: set[int]) -> set[int]:
        found, todo = set(start), list(start)
        while todo:
            new = [i for i in neighbours(todo.pop()) if i in among and i not in found]
            found.update(new)
            todo += new
        return found

    def unavoidable(self) -> set[int]:
        """Blocks on every path through an outermost loop, or through the kernel, whatever lines they are from."""
        ends = [i for i in self.kept if self.blocks[i].ends]
        groups = [ends, *(loop.latches for loop in self.loops)]
        return set.union(*(set.intersection(*(self.dominators[i] for i in group)) for group in groups))

    def _excluded(self, block: Block) -> bool:
        """Whether it never runs: half of it is rare, or most another activation's and nothing the wanted one's.

        The compiler moves single instructions of a region to where others need them too, hence "half" and "most", and
        not of a block of a few; and what it has predicated instead of jumping over it runs.
        """
        regions = self._regions_of(block)
        if 2 * regions["rare"] >= len(block.instructions):
            return True
        other = sum(regions.values()) if self._activation else 0
        return self._activation not in regions and other >= FEW and 2 * other > len(block.instructions)

    def _regions_of(self, block: Block) -> Counter[str]:
        """How many of its instructions are for each activation, and "rare"."""
        surely = (code for code in block.instructions if code.certain and not code.guarded)
        found = (next((name for place in code.places if (name := self._region_at(place))), "") for code in surely)
        return Counter(name for name in found if name)

    def _region_at(self, place: Place) -> str:
        if place.file not in self._regions:
            source_line(place, self._lines)
            self._regions[place.file] = _regions(self._lines[place.file])
        return self._regions[place.file].get(place.line, "")

    def successors(self, i: int) -> list[int]:
        return [s for s in self.blocks[i].successors if s in self.kept]

    @cached_property
    def dominators(self) -> dict[int, set[int]]:
        before: dict[int, list[int]] = {i: [] for i in self.kept}
        for i in self.kept:
            for successor in self.successors(i):
                before[successor].append(i)
        dominators = {i: set(self.kept) for i in self.kept} | {0: {0}}
        changed = True
        while changed:
            changed = False
            for i in sorted(self.kept - {0}):
                new = {i} | set.intersection(*(dominators[p] for p in before[i]))
                changed |= new != dominators[i]
                dominators[i] = new
        return dominators

    @cached_property
    def loops(self) -> list[Loop]:
        """The outermost loops, the others inside them."""
        latches: dict[int, list[int]] = {}
        for i in sorted(self.kept):
            for successor in self.successors(i):
                if successor in self.dominators[i]:
                    latches.setdefault(successor, []).append(i)
        found = [self._loop(header, ends) for header, ends in latches.items()]
        found.sort(key=lambda loop: len(loop.body))
        outermost = []
        for n, loop in enumerate(found):
            parent = next((other for other in found[n + 1 :] if loop.body < other.body), None)
            (outermost if parent is None else parent.inner).append(loop)
        return outermost

    def _loop(self, header: int, latches: list[int]) -> Loop:
        body, todo = {header, *latches}, [i for i in latches if i != header]
        before: dict[int, list[int]] = {}
        for i in self.kept:
            for successor in self.successors(i):
                before.setdefault(successor, []).append(i)
        while todo:
            new = [p for p in before.get(todo.pop(), []) if p not in body]
            body.update(new)
            todo += new
        name, line = self._name(latches)
        return Loop(header, body, latches, name, line)

    def _name(self, latches: list[int]) -> tuple[str, str]:
        """What the line of the closing branch calls the trips; where it has moved, the lines before it."""
        line = ""
        for latch in latches:
            for instruction in reversed(self.blocks[latch].instructions[-6:]):
                for place in instruction.places[:1] if line else instruction.places:
                    if found := _TRIPS.search(source_line(place, self._lines)):
                        return found[1], f"{place.file}:{place.line}"
                    line = line or f"{place.file}:{place.line}"
        last = self.blocks[latches[-1]].instructions[-1]
        if not any(_LOOP.search(source_line(place, self._lines)) for place in last.places[:1]):
            for place in last.places:  # the branch is said to be of a line in the loop
                if found := self._around(place):
                    return found, f"{place.file}:{place.line}"
        return "", line

    def _around(self, place: Place) -> str:
        """The trips of the innermost named loop that a line is in, by its indentation."""
        text = source_line(place, self._lines)
        depth = len(text) - len(text.lstrip())
        for above in reversed(self._lines[place.file][: max(place.line - 1, 0)]):
            indent = len(above) - len(above.lstrip())
            if above.strip() and not above.startswith("#") and indent < depth:
                if found := _TRIPS.search(above):
                    return found[1]
                depth = indent
        return ""

    def cost(
        self,
        trips: Mapping[str, float],  # by name
        longest: bool = True,  # of paths that part, only the longest
    ) -> Cost:
        """The whole kernel."""
        return self._region(0, self.kept, self.loops, None, trips, longest)

    def once(
        self,
        name: str,
        trips: Mapping[str, float],
        longest: bool = True,
    ) -> Cost:
        """One iteration of the loops of that name, wherever they are."""
        found = [loop for loop in self.all_loops() if loop.name == name]
        if not found:
            raise ValueError(f"census: expected a loop with trips named {name}, got {sorted(self.names())}")
        costs = [self._iteration(loop, trips, longest) for loop in found]
        return max(costs, key=lambda cost: cost.instructions)

    def all_loops(self) -> list[Loop]:
        found, todo = list[Loop](), list(self.loops)
        while todo:
            loop = todo.pop()
            found.append(loop)
            todo += loop.inner
        return found

    def names(self) -> set[str]:
        return {loop.name for loop in self.all_loops()}

    def unnamed(self, within: str = "") -> list[str]:
        """The lines of loops that do not name their trips; of those in the loops of that name, or of all."""
        inside = set[int]().union(*(loop.body for loop in self.all_loops() if loop.name == within or not within))
        return [loop.line or "unknown line" for loop in self.all_loops() if not loop.name and loop.header in inside]

    def _iteration(self, loop: Loop, trips: Mapping[str, float], longest: bool) -> Cost:
        return self._region(loop.header, loop.body, loop.inner, loop.latches, trips, longest)

    def _cost_of(self, block: Block) -> Cost:
        """Its instructions; those of a block with the wanted activation count as "#own", which draws paths to it."""
        cost = Cost.of(block.instructions)
        if self._activation and self._activation in self._regions_of(block):
            cost["#own"] = self._regions_of(block)[self._activation]
        return cost

    def _region(
        self,
        entry: int,
        blocks: set[int],
        inner: list[Loop],
        ends: list[int] | None,  # blocks of which a path reaches one; None: any end of the kernel
        trips: Mapping[str, float],
        longest: bool,
    ) -> Cost:
        node = {i: i for i in blocks}  # a loop inside is one node, its header
        costs = {i: self._cost_of(self.blocks[i]) for i in blocks}
        for loop in inner:
            costs[loop.header] = self._iteration(loop, trips, longest).times(trips.get(loop.name, 1))
            node |= dict.fromkeys(loop.body, loop.header)
        nodes = set(node.values())
        if not longest:
            total = Cost()
            for n in nodes:
                total = total.plus(costs[n])
            return total
        after: dict[int, set[int]] = {n: set() for n in nodes}
        for i in blocks:
            for successor in self.successors(i):
                if successor in blocks and successor != entry and node[successor] != node[i]:
                    after[node[i]].add(node[successor])
        wanted = None if ends is None else {node[i] for i in ends}
        best: dict[int, Cost | None] = {}

        def from_(n: int) -> Cost | None:
            if n not in best:
                best[n] = None  # a cycle that is no loop is not followed
                rest = [cost for s in after[n] if (cost := from_(s)) is not None]
                if wanted is None or n in wanted or rest:
                    most = max(rest, key=lambda cost: (cost["#own"], cost.instructions), default=Cost())
                    best[n] = costs[n].plus(most)
            return best[n]

        return from_(node[entry]) or Cost()
