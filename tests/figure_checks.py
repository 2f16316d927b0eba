"""What every figure for print must keep: width, size of type, texts inside the canvas and apart from each other."""
from contextlib import contextmanager


@contextmanager
def drawn_texts():
    "A list that is filled with each text that is really drawn, as (text, box in inches, size in points)."
    from matplotlib.text import Text
    seen, draw = [], Text.draw

    def noted(self, renderer, *args, **more):
        if self.get_visible() and self.get_text().strip():
            box = Text.get_window_extent(self, renderer) # of an annotation, without its line
            seen.append((self.get_text(), [x / self.figure.dpi for x in box.extents], self.get_fontsize()))
        return draw(self, renderer, *args, **more)

    Text.draw = noted
    try: yield seen
    finally: Text.draw = draw


def texts_of(fig):
    from qwen_eval.figure_style import paper_style
    with drawn_texts() as seen, paper_style(): fig.draw_without_rendering()
    return seen


def faults(fig, width_in, slack_in=0.012):
    "Everything that a printer or a reader would mind, in words; an empty list is right."
    texts, found = texts_of(fig), []
    wide, tall = fig.get_size_inches()
    if abs(wide - width_in) > 0.01: found.append(f"width {wide} instead of {width_in}")
    for text, (x0, y0, x1, y1), size in texts:
        if size < 6: found.append(f"{text!r} has {size} pt")
        if x0 < -slack_in or y0 < -slack_in or x1 > wide + slack_in or y1 > tall + slack_in:
            found.append(f"{text!r} leaves the canvas: {x0:.2f} {y0:.2f} {x1:.2f} {y1:.2f} of {wide:.2f} x {tall:.2f}")
    for i, (a, (x0, y0, x1, y1), _) in enumerate(texts):
        for b, (u0, v0, u1, v1), _ in texts[i + 1:]:
            across, down = min(x1, u1) - max(x0, u0), min(y1, v1) - max(y0, v0)
            if across > slack_in and down > slack_in: found.append(f"{a!r} and {b!r} overlap")
    return found
