"""The page of the demo: a canvas, and beside it what each network reads."""

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lifelong.cli.predict import describe

if TYPE_CHECKING:
    from torch import Tensor

    from lifelong.cli.user_images import Picture
    from lifelong.run.learnt import LearntNetwork

COLOURS = ("#0072B2", "#D55E00")  # Okabe and Ito's: EWC, fine-tuning
STYLE = """
.reading { min-width: 15rem; flex: 1; } .reading .digit { font-size: 4rem; line-height: 1; }
.row { display: flex; align-items: center; gap: .5rem; font-variant-numeric: tabular-nums; }
.track { flex: 1; height: .9rem; background: #eee; } .bar { height: 100%; }
.percent { width: 3.6rem; text-align: right; }
#paper { border: 2px solid #444; touch-action: none; width: 280px; height: 280px; cursor: crosshair;
         background: white; }
#seen { width: 112px; height: 112px; image-rendering: pixelated; border: 1px solid #ccc; }
"""
# The strokes are drawn here, in the browser; the picture goes to the networks ten times a second.
SCRIPT = """
const paper = document.getElementById('paper'), ink = paper.getContext('2d');
let drawing = false, waiting = null;
const blank = () => { ink.fillStyle = 'white'; ink.fillRect(0, 0, 280, 280); };
const send = () => { waiting = null; emitEvent('drawn', paper.toDataURL('image/png')); };
const place = event => {
  const box = paper.getBoundingClientRect();
  const scale = 280 / box.width;
  return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
};
ink.lineWidth = 22; ink.lineCap = ink.lineJoin = 'round';
blank();
paper.addEventListener('pointerdown', event => {
  drawing = true; paper.setPointerCapture(event.pointerId);
  ink.beginPath(); ink.moveTo(...place(event)); ink.lineTo(...place(event)); ink.stroke();
});
paper.addEventListener('pointermove', event => {
  if (!drawing) return;
  ink.lineTo(...place(event)); ink.stroke();
  waiting ??= setTimeout(send, 100);
});
for (const end of ['pointerup', 'pointercancel'])
  paper.addEventListener(end, () => {
    if (!drawing) return;
    drawing = false; clearTimeout(waiting); send();
  });
window.clearPaper = () => { blank(); clearTimeout(waiting); emitEvent('cleared'); };
"""


def drawn_picture(data_url: str) -> "Picture":
    """The digit on a canvas, laid out as MNIST's.

    Args:
        data_url: a PNG as ``canvas.toDataURL`` gives it, dark ink on white.

    Returns:
        The picture.

    Raises:
        PictureError: when nothing is drawn yet.
    """  # noqa: DOC502
    import numpy as np
    import torch
    from PIL import Image

    from lifelong.cli.user_images import as_mnist

    content = base64.b64decode(data_url.partition(",")[2])
    grey = np.array(Image.open(io.BytesIO(content)).convert("L"), dtype=np.float32)
    return as_mnist(torch.from_numpy(grey), "dark")


def reading_html(learnt: "LearntNetwork", colour: str, pixels: "Tensor | None") -> str:
    """What a network reads, as HTML.

    Args:
        learnt: reads it.
        colour: of its bars.
        pixels: the picture; [28, 28], uint8. None for an empty paper.

    Returns:
        The most probable digit and ten bars.
    """
    from lifelong.run.summary import titled

    values = [0.0] * 10
    if pixels is not None:
        (values,) = learnt.probabilities(pixels.unsqueeze(0)).tolist()
    digit = "–" if pixels is None else str(values.index(max(values)))
    rows = "".join(
        f'<div class="row"><b>{number}</b><div class="track"><div class="bar" style="width:'
        f'{100 * value:.1f}%;background:{colour}"></div></div>'
        f'<div class="percent" data-probability="{value:.6f}">{100 * value:.1f} %</div></div>'
        for number, value in enumerate(values)
    )
    name = titled({"method": learnt.method})["method_title"]
    return (
        f'<div class="reading" id="{learnt.method}"><h2 style="color:{colour};font-size:1.2rem">'
        f'{name}</h2><div class="digit">{digit}</div>{rows}</div>'
    )


def seen_html(pixels: "Tensor | None") -> str:
    """The picture as the networks see it.

    Args:
        pixels: [28, 28], uint8; None for an empty paper.

    Returns:
        An image.
    """
    from PIL import Image, ImageOps

    picture = Image.new("L", (28, 28)) if pixels is None else Image.fromarray(pixels.numpy())
    written = io.BytesIO()
    ImageOps.invert(picture).save(written, "PNG")
    data = base64.b64encode(written.getvalue()).decode()
    return f'<img id="seen" alt="what the networks see" src="data:image/png;base64,{data}">'


def serve_page(networks: Sequence["LearntNetwork"], *, host: str, port: int, show: bool) -> None:
    """Serve the page until Ctrl-C.

    Args:
        networks: the two that read.
        host: the address to listen on.
        port: its port.
        show: whether to open a browser.
    """
    from nicegui import ui

    def page() -> None:
        ui.add_css(STYLE)
        learnt = " → ".join(networks[0].tasks)
        ui.html(f'<h1 style="font-size:1.5rem">Draw a digit</h1><p>Both networks learnt {learnt}.')
        if networks[0].learnt_from_embedded_digits:
            ui.label(
                "They learnt the embedded digits of scikit-learn, not the MNIST and USPS archives."
            ).style("border-left: 4px solid #D55E00; padding-left: .6rem")
        with ui.element("div").style("display:flex; flex-wrap:wrap; gap:2rem; width:100%"):
            with ui.element("div"):
                ui.html('<canvas id="paper" width="280" height="280"></canvas>', sanitize=False)
                with ui.row().classes("items-center"):
                    ui.button("Clear", color="black").props("id=clear").on(
                        "click", js_handler="() => clearPaper()"
                    )
                    seen = ui.html(seen_html(None), sanitize=False)
            both = ui.element("div").style("display:flex; flex-wrap:wrap; gap:2rem; flex:1")
            with both:
                panels = [
                    ui.html(reading_html(one, colour, None), sanitize=False).style("flex:1")
                    for one, colour in zip(networks, COLOURS, strict=True)
                ]
        ui.label(describe(networks[0]).partition("; ")[2]).style("color:#555; font-size:.9rem")

        def update(pixels: "Tensor | None") -> None:
            seen.set_content(seen_html(pixels))
            for panel, one, colour in zip(panels, networks, COLOURS, strict=True):
                panel.set_content(reading_html(one, colour, pixels))

        def drawn(data_url: str) -> None:
            from lifelong.cli.user_images import PictureError

            try:
                update(drawn_picture(data_url).pixels)
            except PictureError:
                update(None)

        ui.on("drawn", lambda event: drawn(event.args))
        ui.on("cleared", lambda: update(None))
        ui.run_javascript(SCRIPT)

    ui.run(page, host=host, port=port, show=show, reload=False, title="lifelong", favicon="✎")
