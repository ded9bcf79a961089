// Elements from data. Text always enters as text: nothing here, or anywhere on this page, parses a string as HTML.

const SVG = "http://www.w3.org/2000/svg";

export const $ = id => document.getElementById(id);

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value == null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter(child => child != null));
  return element;
}

// An HTML element: attributes, `on…` listeners, children (strings become text).
export const h = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);

// The same in SVG.
export const s = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

// Sets text only where it changed, so that screen readers and selections are left alone.
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// A colour of the page, as the present theme has it.
export const colour = name => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
