"""The web page of ``dogmed serve``, in Gradio: a place to drop an image, probabilities, and where they come from.

Gradio lays the page out and shows the values. The images do not go through Gradio, which makes files of
uploads and keeps values by session: the page's script sends them to ``/page``.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import gradio as gr

from dogmed.inference.explain.maps import Explainer, Explanation
from dogmed.inference.explain.page import FIGURES, Shown, section
from dogmed.inference.explain.pictures import KERNELS_NOTE, caveat
from dogmed.inference.export.card import NO_DEVICE
from dogmed.inference.reading.pictures import Picture
from dogmed.inference.serve.answers import Answers

SHOWN_CLASSES = 14
THEME = gr.themes.Default(
    font=[
        "system-ui",
        "-apple-system",
        "Segoe UI",
        "Roboto",
        "Helvetica Neue",
        "Arial",
        "sans-serif",
    ],
    font_mono=["ui-monospace", "Menlo", "Consolas", "monospace"],
)
"""Gradio's, with fonts that are on every machine."""
CSS = """
.html-container { padding-inline: 0 !important; }
body:has(.drop.busy) .answer { opacity: .3; }
"""
"""Of the whole page: texts begin where the boxes do; an answer to the last question fades with the next."""
COLOURS = """
--ink: var(--body-text-color); --faint: color-mix(in srgb, var(--body-text-color) 70%, transparent);
--line: var(--border-color-primary); --warn: color-mix(in srgb, #d97706 60%, var(--body-text-color));
"""
WARNING = (
    ".warning { color: var(--warn); font-size: .86rem; margin: .2rem 0; overflow-wrap: anywhere; }"
)
DROP = """
<label class="drop"><input type="file" aria-label="image">
<b>Drop an image here</b> or click to choose one
<span>PNG, JPEG, TIFF, BMP, WebP, GIF, DICOM</span><output></output></label>
"""
DROP_STYLE = """
.drop { display: flex; flex-direction: column; align-items: center; justify-content: center; gap: .3rem;
  min-height: 12rem; padding: 1rem; cursor: pointer; text-align: center; position: relative;
  border: 2px dashed var(--border-color-primary); border-radius: var(--radius-lg); overflow-wrap: anywhere; }
.drop:hover, .drop:focus-within, .drop.over { border-color: var(--color-accent); }
.drop input { position: absolute; inset: 0; opacity: 0; cursor: pointer; }
.drop span { opacity: .7; font-size: .86rem; }
.drop.busy output::after { content: " ..."; }
"""
DROP_SCRIPT = """
const send = file => {
  if (!file) return;
  window.dogmed = Object.assign(window.dogmed || {}, {file: file});
  element.querySelector('output').textContent = file.name;
  props.value = (props.value || 0) + 1;
  trigger('upload');
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
ASK = """
async (drops, label) => {
  const state = window.dogmed;
  if (!state) return [{}, '', ''];
  if (state.asked) state.asked.abort();
  const asked = state.asked = new AbortController();
  const ask = async () => {
    const form = new FormData();
    form.append('image', state.file, state.file.name);
    const where = 'page' + (label < 0 ? '' : '?label=' + label);
    const answer = await fetch(where, {method: 'POST', body: form, signal: asked.signal});
    const told = await answer.json();
    if (told.error) throw new Error(told.error);
    const all = Object.entries(told.probabilities).map(([label, confidence]) => ({label, confidence}));
    all.sort((a, b) => b.confidence - a.confidence);
    return [{label: all[0].label, confidences: all.slice(0, SHOWN_CLASSES)}, told.warning, told.html];
  };
  const busy = document.querySelector('.drop').classList;
  busy.add('busy');
  let mine = state.answer = ask();
  for (;;) {  // the answer to the newest question is that to all which it has overtaken
    const answer = await mine.catch(error => {
      const line = document.createElement('p');
      line.className = 'warning';
      line.textContent = error.message;
      return [{}, line.outerHTML, ''];
    });
    if (mine === state.answer) {
      busy.remove('busy');
      return answer;
    }
    mine = state.answer;
  }
}
""".replace("SHOWN_CLASSES", str(SHOWN_CLASSES))
ADDRESS_SCRIPT = """
element.querySelector('.address').textContent = location.href.replace(/[?#].*/, '').replace(/[/]$/, '');
"""


def make_page(answers: Answers) -> gr.Blocks:
    """Lay out the page."""
    asked = answers.classifier
    several = asked.kind == "multi-label"
    title = f"{asked.trained.record.model} for {asked.task}"
    with gr.Blocks(title=title, analytics_enabled=False) as page:
        gr.HTML(_head(answers))
        with gr.Row():
            with gr.Column(min_width=280):
                drop = gr.HTML(html_template=DROP, css_template=DROP_STYLE, js_on_load=DROP_SCRIPT)
            with gr.Column(min_width=280):
                told = gr.Label(
                    label="probability of each label" if several else "probabilities",
                    show_heading=not several,
                    elem_classes="answer",
                )
                warned = gr.HTML(css_template=COLOURS + WARNING, elem_classes="answer")
        classes = gr.Dropdown(
            [("what is decided for", -1), *((name, k) for k, name in enumerate(asked.classes))],
            value=-1,
            label="Explain",
            visible=answers.explainer is not None,
        )
        where = gr.HTML(css_template=COLOURS + FIGURES, elem_classes="answer")
        gr.HTML(_foot(answers), js_on_load=ADDRESS_SCRIPT)
        asking: dict[str, Any] = {
            "fn": None, "js": ASK, "inputs": [drop, classes], "outputs": [told, warned, where],
            "trigger_mode": "multiple", "api_visibility": "private",
        }  # fmt: skip
        drop.upload(**asking)
        classes.input(**asking)
    return page


def warning(text: str) -> str:
    """What the page shows beside the probabilities."""
    return f'<p class="warning">warning: {escape(text)}</p>' if text else ""


def figures(explainer: Explainer | None, picture: Picture, found: Sequence[Explanation]) -> str:
    """What the page shows of an image below its probabilities."""
    return "" if explainer is None else section(explainer, Shown(picture, found, ""))


def _head(answers: Answers) -> str:
    asked = answers.classifier
    notes = "".join(f"<p><b>Note:</b> {escape(note)}</p>" for note in answers.notes)
    return (
        f"<h1>{escape(asked.trained.record.model)} for {escape(asked.task)}</h1>"
        f"<p>{escape(asked.introduction())}. {escape(NO_DEVICE)}</p>{notes}"
    )


def _foot(answers: Answers) -> str:
    notes = [] if answers.explainer is None else [caveat(answers.explainer)]
    if answers.explainer is not None and answers.explainer.dog:
        notes.append(KERNELS_NOTE)
    told = "".join(f"<p>{escape(note)}</p>" for note in notes)
    return (
        f"<small>{told}<p>No upload is kept. As JSON: "
        '<code>curl -F image=@scan.png <span class="address"></span>/predict</code></p></small>'
    )
