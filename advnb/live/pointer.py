"""A picture in a page that tells where somebody points at it."""

from __future__ import annotations

import anywidget
import traitlets

# a change of the <img> keeps the element: its old pixels stay until the new ones are decoded
PAGE = """
function render({ model, el }) {
  const box = document.createElement("div");
  box.tabIndex = 0;
  box.setAttribute("role", "group");
  box.setAttribute("data-lm-suppress-shortcuts", "true");  // arrows are not for the notebook
  const draw = () => {
    const made = document.createElement("template");
    made.innerHTML = model.get("value");
    const [old, fresh] = [box, made.content].map((e) => e.querySelector("img"));
    if (old && fresh) {
      old.alt = fresh.alt;
      old.src = fresh.getAttribute("src");
    } else {
      box.replaceChildren(made.content);
      box.querySelector("img")?.setAttribute("draggable", "false");
    }
  };
  const tell = (name, value) => { model.set(name, value); model.save_changes(); };
  const place = (event) => {
    const edge = box.querySelector("img").getBoundingClientRect();
    return [(event.clientX - edge.left) / edge.width, (event.clientY - edge.top) / edge.height];
  };
  const inside = (event) => event.target.tagName === "IMG";
  let next = null;  // at most one message a frame: the newest
  box.addEventListener("pointermove", (event) => {
    if (!inside(event)) return;
    if (next === null) requestAnimationFrame(() => { tell("spot", next); next = null; });
    next = place(event);
  });
  box.addEventListener("click", (event) => {
    if (inside(event)) tell("click", [...place(event), model.get("click")[2] + 1]);
  });
  const keys = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] };
  box.addEventListener("keydown", (event) => {
    const step = keys[event.key];
    if (!step || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation();
    tell("arrows", model.get("arrows").map((n, axis) => n + step[axis]));
  });
  const name = () => box.setAttribute("aria-label", model.get("label"));
  model.on("change:value", draw);
  model.on("change:label", name);
  name();
  draw();
  el.append(box);
  return () => { model.off("change:value", draw); model.off("change:label", name); };
}
export default { render };
"""


class PointedImage(anywidget.AnyWidget):
    """Shows `value`, HTML with one <img>, as ipywidgets' HTML does, and says what is done to it.

    `spot`: (x, y) of the pointer, fractions of width and height from the top left. `click`: the
    same of the last click, and how many there were. `arrows`: presses of the arrow keys so far,
    right less left and down less up. `label` tells a screen reader what pointing and keys do.
    """

    _esm = PAGE
    value = traitlets.Unicode().tag(sync=True)
    label = traitlets.Unicode().tag(sync=True)
    # what only the page sets is not sent back to it
    spot = traitlets.List([-1.0, -1.0]).tag(sync=True, echo_update=False)
    click = traitlets.List([-1.0, -1.0, 0]).tag(sync=True, echo_update=False)
    arrows = traitlets.List([0, 0]).tag(sync=True, echo_update=False)
