"""The picture of sizes: the bytes in memory of every part of the model, before and after."""

from typing import Any

from basis_sharing.reports.layout import EMBEDDINGS, REST, Layout
from basis_sharing.reports.picture import FONT, Picture, bare
from basis_sharing.results.words import amount_of_bytes

_COLOURS = {  # attention in blues, the MLP in oranges, experts in purples, each from dark to light; the rest in greys
    "q": "#084594",
    "k": "#2171b5",
    "v": "#4292c6",
    "kv": "#2171b5",
    "qkv": "#084594",
    "q_a": "#084594",
    "kv_a": "#2171b5",
    "q_b": "#4292c6",
    "kv_b": "#6baed6",
    "o": "#9ecae1",
    "gate": "#a63603",
    "gate_up": "#a63603",
    "up": "#e6750d",
    "down": "#fdbe70",
    "experts": "#54278f",
    "shared_gate": "#756bb1",
    "shared_gate_up": "#756bb1",
    "shared_up": "#9e9ac8",
    "shared_down": "#cbc9e2",
    EMBEDDINGS: "#737373",
    REST: "#cfcfcf",
}
_LIGHT = {"o", "down", "shared_up", "shared_down", REST}
_NARROWEST = 0.08


def size_picture(layout: Layout) -> Picture:
    """Return the picture of the bytes in memory by part, before and after."""
    parts = [part for part in layout.before if layout.before[part] or layout.after[part]]
    described = ", ".join(
        f"{part} {amount_of_bytes(layout.before[part])} to {amount_of_bytes(layout.after[part])}" for part in parts
    )
    total = [sum(bar.values()) for bar in (layout.before, layout.after)]

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        for row, bar in enumerate((layout.before, layout.after)):
            left = 0
            for part in parts:
                width = bar[part]
                axes.barh(row, width, 0.62, left, color=_COLOURS[part], edgecolor="white", linewidth=0.8,
                          label=part if row == 0 else None)  # fmt: skip
                if width > _NARROWEST * max(total) and part not in (EMBEDDINGS, REST):
                    colour = "black" if part in _LIGHT else "white"
                    axes.text(left + width / 2, row, part, ha="center", va="center", color=colour, fontsize=FONT)
                left += width
            axes.text(left, row, f"  {amount_of_bytes(left)}", va="center", fontsize=FONT, fontweight="bold")
        axes.set_yticks([0, 1], labels=["original", "compressed"], fontsize=FONT + 1)
        axes.set_ylim(1.5, -0.5)
        axes.set_xlim(0, 1.22 * max(total))
        axes.set_xticks([])
        bare(axes)
        figure.legend(loc="outside lower center", ncols=min(6, (len(parts) + 1) // 2), frameon=False, fontsize=FONT,
                      handlelength=1.1, columnspacing=1.2)  # fmt: skip

    alt = (
        f"Two stacked bars of the bytes in memory: original {amount_of_bytes(total[0])}, compressed "
        f"{amount_of_bytes(total[1])}. By part: {described}."
    )
    return Picture("sizes", alt, 5.6, 2.4, draw)
