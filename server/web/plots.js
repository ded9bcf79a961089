// Plots over the last two minutes. Missing values are gaps: a step that did not happen took no time.

import { colour, h, say } from "./dom.js";
import { ms, percent, rate } from "./text.js";

const HEIGHT = 118;
const PLOTS = [
  { title: "Tokens per second", lines: [["thinking", "thinking"], ["answer", "answer"], ["prefill", "prefill"]], value: rate },
  { title: "Latency", lines: [["perToken", "answer", "per token"], ["perStep", "thinking", "per step"], ["device", "prefill", "device"]], value: ms, unit: "ms" },
  { title: "Guessing", lines: [["right", "answer", "right"], ["length", "tool_call", "length"]], value: rate, share: "right" },
];

// The title and the legend of a plot, with the latest value of each line.
function caption(plot) {
  const values = plot.lines.map(([name, hue, label = name]) => ({ name, label, element: h("span", { class: `c-${hue}` }) }));
  return { values, element: h("figcaption", null, h("b", null, plot.title), values.map(v => v.element)) };
}

export class Plots {
  constructor(parent) {
    this.parent = parent;
    this.drawn = PLOTS.map(plot => {
      const { values, element } = caption(plot);
      const place = h("div", { "aria-hidden": "true" });
      parent.append(h("figure", null, element, place));
      return { plot, values, place };
    });
    new ResizeObserver(() => this.fit()).observe(parent);
  }

  // Anew, in the present theme's colours.
  make() {
    const [ink, line] = [colour("quiet"), colour("line")];
    for (const drawn of this.drawn) {
      const { plot, place } = drawn;
      drawn.chart?.destroy();
      const series = plot.lines.map(([name, hue]) => ({
        stroke: colour(hue), width: 1.5, points: { show: false }, spanGaps: false, scale: name === plot.share ? "share" : "y",
      }));
      const axis = { stroke: ink, font: "11px system-ui, sans-serif", ticks: { show: false }, grid: { stroke: line, width: 1 } };
      const scales = { x: { time: false, range: [-120, 0] }, y: { range: (u, low, high) => [0, Math.max(plot.unit ? 1 : 4, (high ?? 0) * 1.1)] } };
      const axes = [
        { ...axis, grid: { show: false }, size: 20, gap: 2, splits: [-90, -60, -30, 0], values: (u, at) => at.map(v => (v === 0 ? "now" : `${v} s`)) },
        { ...axis, size: 40, gap: 4, space: 26, values: (u, at) => at.map(v => (v >= 10000 ? `${v / 1000}k` : String(v))) },
      ];
      if (plot.share) {
        scales.share = { range: [0, 1] };
        axes.push({ ...axis, grid: { show: false }, scale: "share", side: 1, splits: [0.5, 1], size: 38, gap: 4, space: 40, values: (u, at) => at.map(v => percent(v)) });
      }
      drawn.chart = new uPlot({
        width: Math.max(120, place.clientWidth), height: HEIGHT, padding: [8, plot.share ? 0 : 12, 0, 0], legend: { show: false },
        cursor: { show: false }, scales, axes, series: [{}, ...series],
      }, [[], ...series.map(() => [])], place);
    }
  }

  fit() {
    for (const { chart, place } of this.drawn) {
      if (chart && place.clientWidth > 0 && chart.width !== place.clientWidth) chart.setSize({ width: place.clientWidth, height: HEIGHT });
    }
  }

  draw(history, now) {
    if (!this.drawn[0].chart) this.make();
    const last = history.points.at(-1);
    for (const { plot, values, chart } of this.drawn) {
      chart.setData(history.columns(now, ...plot.lines.map(line => line[0])));
      for (const { name, label, element } of values) {
        say(element, `${label} ${name === plot.share ? percent(last?.[name]) : plot.value(last?.[name])}`);
      }
    }
  }
}
