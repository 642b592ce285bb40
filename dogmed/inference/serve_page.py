"""The web page of ``dogmed serve``, in Gradio: a place to drop an image, probabilities, and where they come from.

The image goes to the server with each question, inside the request, and is held there for that answer only;
Gradio's own uploads, which are files, are not used.
"""

from __future__ import annotations

import base64
from html import escape
from itertools import islice
from typing import Any

import gradio as gr

from dogmed.errors import DataError, DogmedError, printable
from dogmed.inference.card import NO_DEVICE
from dogmed.inference.explain_page import FIGURES, Shown, section
from dogmed.inference.explain_pictures import KERNELS_NOTE, caveat
from dogmed.inference.serve_answers import Answers

DECIDED = "what is decided for"
"""Of the list of classes to explain: none is chosen."""
SHOWN_CLASSES = 14
COLOURS = """
--ink: var(--body-text-color); --faint: color-mix(in srgb, var(--body-text-color) 70%, transparent);
--line: var(--border-color-primary); --warn: color-mix(in srgb, #d97706 60%, var(--body-text-color));
"""
CSS = ".html-container { padding-inline: 0 !important; }"
"""Of the whole page: texts begin where the boxes do."""
DROP = """
<label class="drop"><input type="file" accept="image/*,.dcm,.dicom,.tif,.tiff">
<b>Drop an image here</b> or click to choose one
<span>PNG, JPEG, TIFF, BMP, WebP, GIF, DICOM; ${limit}</span><output></output></label>
"""
DROP_STYLE = """
.drop { display: flex; flex-direction: column; align-items: center; justify-content: center; gap: .3rem;
  min-height: 12rem; padding: 1rem; cursor: pointer; text-align: center; position: relative;
  border: 2px dashed var(--border-color-primary); border-radius: var(--radius-lg); overflow-wrap: anywhere; }
.drop:hover, .drop:focus-within, .drop.over { border-color: var(--color-accent); }
.drop input { position: absolute; inset: 0; opacity: 0; cursor: pointer; }
.drop span { opacity: .7; font-size: .86rem; }
"""
DROP_SCRIPT = """
const send = file => {
  if (!file) return;
  const say = text => { element.querySelector('output').textContent = text; };
  if (file.size > props.max_bytes) {
    say(file.name + ' is too large: ' + (file.size / 1e6).toFixed(1) + ' MB; ' + props.limit);
    return;
  }
  const reader = new FileReader();
  reader.onerror = () => say(file.name + ' cannot be read');
  reader.onload = () => {
    say(file.name);
    props.value = {name: file.name, content: reader.result.slice(reader.result.indexOf(',') + 1)};
    trigger('upload');
  };
  reader.readAsDataURL(file);
};
element.addEventListener('change', event => { send(event.target.files[0]); event.target.value = ''; });
for (const kind of ['dragenter', 'dragover', 'dragleave', 'drop'])
  element.addEventListener(kind, event => {
    event.preventDefault();
    event.stopPropagation();
    element.querySelector('.drop').classList.toggle('over', kind === 'dragenter' || kind === 'dragover');
    if (kind === 'drop') send(event.dataTransfer.files[0]);
  });
"""


def make_page(answers: Answers, *, max_bytes: int, address: str) -> gr.Blocks:
    """Lay out the page.

    Args:
        answers: of the network.
        max_bytes: of an upload.
        address: of the server, without a slash at its end.
    """
    limit = f"at most {max_bytes / 1e6:g} MB"
    asked = answers.classifier

    def answer(upload: Any, name: str) -> tuple[dict[str, float] | None, str]:
        try:
            return _answer(answers, upload, None if name == DECIDED else name, max_bytes)
        except DogmedError as error:
            return None, f'<p class="warning">{escape(printable(str(error)))}</p>'

    with gr.Blocks(
        title=f"{asked.trained.record.model} for {asked.task}", analytics_enabled=False
    ) as page:
        gr.HTML(_head(answers))
        with gr.Row():
            drop = gr.HTML(
                html_template=DROP, css_template=DROP_STYLE, js_on_load=DROP_SCRIPT,
                max_bytes=max_bytes, limit=limit, min_width=280,
            )  # fmt: skip
            told = gr.Label(
                min_width=280,
                label="probability of each label"
                if asked.kind == "multi-label"
                else "probabilities",
                num_top_classes=SHOWN_CLASSES,
                show_heading=asked.kind != "multi-label",
            )
        classes = gr.Dropdown(
            [DECIDED, *asked.classes], value=DECIDED, label="Explain", visible=not answers.no_maps
        )
        where = gr.HTML(css_template=COLOURS + FIGURES)
        gr.HTML(_foot(answers, address))
        given: dict[str, Any] = {
            "inputs": [drop, classes],
            "outputs": [told, where],
            "api_visibility": "private",
        }
        drop.upload(answer, **given)
        classes.input(answer, **given)
    return page


def _answer(
    answers: Answers, upload: Any, name: str | None, max_bytes: int
) -> tuple[dict[str, float] | None, str]:
    """Probabilities, and the figures as HTML."""
    if not upload:
        return None, ""
    picture, *more = islice(answers.read(*_sent(upload, max_bytes)), 2)
    predicted = answers.classify(picture)
    warnings = [predicted.warnings[0]] if predicted.warnings[0] else []
    if more:
        warnings.append("only its first page is shown")
    (values,) = predicted.probabilities
    probabilities = dict(zip(predicted.classes, map(float, values), strict=True))
    if answers.no_maps:
        return probabilities, "".join(f'<p class="warning">{escape(w)}</p>' for w in warnings)
    found = answers.explain(picture, None if name is None else answers.label(name))
    return probabilities, section(answers.explainer, Shown(picture, found, "; ".join(warnings)))


def _sent(upload: Any, max_bytes: int) -> tuple[bytes, str]:
    """The content and the name of what the page's script sends.

    Raises:
        DataError: it is too large, or not what the script sends.
    """
    try:
        content, name = base64.b64decode(upload["content"], validate=True), str(upload["name"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError("the upload is damaged: drop the image again") from error
    if len(content) > max_bytes:
        raise DataError(f"the upload has {len(content) / 1e6:.1f} MB, at most {max_bytes / 1e6:g}")
    return content, name


def _head(answers: Answers) -> str:
    asked = answers.classifier
    notes = "".join(f"<p><b>Note:</b> {escape(note)}</p>" for note in answers.notes)
    return (
        f"<h1>{escape(asked.trained.record.model)} for {escape(asked.task)}</h1>"
        f"<p>{escape(answers.title.partition(': ')[2])}. {escape(NO_DEVICE)}</p>{notes}"
    )


def _foot(answers: Answers, address: str) -> str:
    notes = [] if answers.no_maps else [caveat(answers.explainer)]
    if not answers.no_maps and answers.explainer.dog:
        notes.append(KERNELS_NOTE)
    told = "".join(f"<p>{escape(note)}</p>" for note in notes)
    return (
        f"<small>{told}<p>No upload is kept. As JSON: "
        f"<code>curl -F image=@scan.png {escape(address)}/predict</code></p></small>"
    )
