"""What a run shows: differences that hold, orders, the pace of groups, the course of answers through stages."""

from __future__ import annotations

import math

from gateway.evaluation.report import plots
from gateway.evaluation.report.blocks import NAMES, Block, Picture, Table, Text, number, p_value, percent, share_of
from gateway.evaluation.report.content import Content
from strategies.evaluation.advice import ALPHA, Comparison
from strategies.evaluation.published import claims, recompute
from strategies.evaluation.statistics import holm

ENOUGH_GROUPS = 8
"""To tell an interval over them."""


def differences(content: Content) -> list[Block]:
    if not content.advice.comparisons:
        return []
    columns = ("wiring", "against", "difference, points (95 %)", "right alone", "p", "corrected", "seconds", "verdict")
    rows = tuple(_comparison(c) for c in sorted(content.advice.comparisons, key=lambda c: -c.result.difference))
    note = (
        "Paired, on the questions that both answered. Right alone: questions that one of the two alone got right. p: McNemar, exact. "
        "Corrected: for the number of comparisons (Holm). Seconds: ratio. What is under 5 % after correction is called a difference."
    )
    blocks: list[Block] = [
        Table(f"Every wiring against {content.advice.baseline or 'the best'}", columns, rows, note, texts=2)
    ]
    if len(content.pairs) > 1:
        rows = tuple(_comparison(c) for c in content.pairs)
        blocks.append(
            Table(
                "The best path of each structure, each against each",
                columns,
                rows,
                "Chosen on these same questions: flattering to all of them.",
                texts=2,
            )
        )
    return blocks


def _comparison(c: Comparison) -> tuple[str, ...]:
    r = c.result
    interval = f"{100 * r.difference:+.1f} ({100 * r.low:+.1f} to {100 * r.high:+.1f})"
    return (
        c.wiring,
        c.against,
        interval,
        f"{r.only_a} : {r.only_b}",
        p_value(r.p),
        p_value(c.adjusted),
        f"{c.seconds_ratio:.2f}",
        c.verdict,
    )


def order(content: Content) -> list[Block]:
    blocks: list[Block] = []
    if content.orders:
        corrected = list(zip(content.orders, holm([o.test.p for o in content.orders]), strict=True))
        rows = tuple(
            (
                o.task,
                NAMES[o.structure],
                str(o.orders),
                f"{percent(o.lowest)} to {percent(o.highest)}",
                f"{o.test.q:.2f}",
                p_value(o.test.p),
                p_value(p),
            )
            for o, p in corrected
        )
        shown = [o for o, p in corrected if p < ALPHA]
        said = (
            "Orders differ, beyond chance, in " + ", ".join(f"{NAMES[o.structure]} on {o.task}" for o in shown) + "."
            if shown else "No order is shown to matter: differences between orders are within what chance makes of so many questions."
        )  # fmt: skip
        note = (
            "Cochran's Q over the different orders of a structure; p by permutation within questions. Corrected: for the number of "
            "rows (Holm)."
        )
        blocks += [
            Text(said),
            Table(
                "Orders against each other",
                ("task", "structure", "orders", "lowest to highest", "Q", "p", "corrected"),
                rows,
                note,
                texts=2,
            ),
        ]
    if content.weak:
        placed = tuple(
            (NAMES[w.structure], w.model, ", ".join(f"{place + 1}: {percent(share)}" for place, share in w.shares),
             f"{100 * w.difference:+.1f}" + ("" if math.isnan(w.low) else f" ({100 * w.low:+.1f} to {100 * w.high:+.1f})"),
             str(w.questions))
            for w in content.weak
        )  # fmt: skip
        note = (
            "Share right by the stage in which the model that is weakest alone stands. Difference: standing last minus "
            "standing first, in points (95 %, bootstrap over questions)."
        )
        blocks.append(
            Table(
                "The weakest model early or late",
                ("structure", "weakest", "by stage", "last - first", "questions"),
                placed,
                note,
                texts=3,
            )
        )
    return blocks


def pace(content: Content) -> list[Block]:
    slowest = content.slowest
    if not slowest.groups:
        return []
    rows = tuple(
        ("|".join(g.members), number(g.ms), f"{g.slowest} {g.slowest_ms:.1f}", f"{g.to_slowest:.2f}", number(g.sum_ms), f"{g.to_sum:.2f}",
         number(g.waiting_ms), number(g.own_ms, "{:.3f}".format), share_of(g.own_ms, g.ms))
        for g in slowest.groups
    )  # fmt: skip
    columns = (
        "group",
        "step, ms",
        "slowest member, ms",
        "ratio",
        "sum, ms",
        "ratio",
        "waiting, ms",
        "own work, ms",
        "of the step",
    )
    note = (
        "A step writes one piece of text (about a token of English); steps behind the first. Members: median ms per token where they write "
        "alone in this run. Own work: choosing the piece and handing it on (aggregation), mean. Waiting: the rest, for the members' "
        "forward passes and the way there and back. Requests that were asked side by side shared the models' time: then a step may take "
        "less than its slowest member took at other moments."
    )
    blocks: list[Block] = [Table("One step of a group", columns, rows, note)]
    for name, fit in (("the slowest member", slowest.by_slowest), ("the sum of the members", slowest.by_sum)):
        if fit is not None:
            sure = f" (95 % {fit.low:.2f} to {fit.high:.2f})" if fit.points >= ENOUGH_GROUPS else ""
            blocks.append(Text(f"Over {fit.points} groups a step takes {fit.slope:.2f} times {name}{sure}."))
    paper = content.published.step
    blocks.append(
        Text(
            f"The source experiment, every model on a machine of its own: slowest branch {paper['slowest branch']:g} ms, "
            f"{paper['slowest branch %']:g} % of the step; "
            f"transfer {paper['transfer']:g} ms; aggregation {paper['aggregation']:g} ms. Models that share a processor "
            f"take its time from each other, so that there the sum counts as well."
        )
    )
    if picture := plots.pace(content):
        blocks.append(
            Picture("pace", picture, "A step of each group, its slowest member alone, and the sum of its members.")
        )
    return blocks


def flow(content: Content) -> list[Block]:
    if not content.steps:
        return []
    columns = ("wiring", "stage", "by", "kept right", "put right", "lost", "left wrong", "gain")
    rows = tuple(
        (
            s.wiring,
            str(s.stage + 1),
            f"{'|'.join(s.models)} ({s.role})",
            str(s.kept),
            str(s.repaired),
            str(s.lost),
            str(s.wrong),
            f"{s.gain:+d}",
        )
        for s in content.steps
    )
    writers = tuple(
        ("|".join(s.models), s.role, str(s.kept), str(s.repaired), str(s.lost), str(s.wrong), f"{s.gain:+d}")
        for s in sorted(content.writers, key=lambda s: -s.gain)
    )
    lost, repaired = sum(s.lost for s in content.steps), sum(s.repaired for s in content.steps)
    kept, wrong = sum(s.kept for s in content.steps), sum(s.wrong for s in content.steps)
    said = (
        f"Of {kept + lost} right texts that were handed on to a later stage {lost} were lost there; of {wrong + repaired} wrong ones "
        f"{repaired} were put right."
    )
    blocks: list[Block] = [Text(said)]
    if picture := plots.flow(content):
        blocks.append(
            Picture("flow", picture, "What later stages do to the answers that they are handed, by who writes them.")
        )
    note = "Every stage's text is judged as if it were the answer; a stage that was cut short may have been right had it gone on."
    return [
        *blocks,
        Table(
            "By who writes the later stage",
            ("by", "role", "kept right", "put right", "lost", "left wrong", "gain"),
            writers,
            note,
            texts=2,
        ),
        Table("By wiring", columns, rows, texts=3),
    ]


def published(content: Content) -> list[Block]:
    checks = recompute(content.published)
    wrong = [c for c in checks if c.agrees is False]
    agree, unknown = sum(c.agrees is True for c in checks), sum(c.agrees is None for c in checks)
    rows = tuple((c.what, f"{c.printed:g}", f"{c.recomputed:.3f}") for c in wrong if c.recomputed is not None)
    claimed = tuple(
        (
            c.task,
            c.better,
            c.worse,
            f"{c.shares[0]:g} : {c.shares[1]:g}",
            f"{100 * c.low:+.1f} to {100 * c.high:+.1f}",
            "yes" if c.shown else "no",
        )
        for c in claims(content.published)
    )
    return [
        Text(f"From {content.published.source}."),
        Text(f"Of {len(checks)} printed means, spreads and best paths, {agree} come out the same from the printed tables, "
            f"{len(wrong)} differ, and {unknown} can't be checked because the table behind them was not printed."),
        Table("Printed and recomputed", ("what", "printed", "recomputed"), rows, "Differences of rounding, as far as can be seen."),
        Table("What its hundred questions "
            "show", ("task", "structure", "against", "right, %", "difference, points (95 %)", "shown"), claimed,
              "Newcombe's interval for two separate samples: the answers question by question were not printed, so no paired "
                  "test is possible. Not corrected for the number of rows, and the best of all orders was chosen on these questions: both "
                  "flatter it.", texts=3),
    ]  # fmt: skip
