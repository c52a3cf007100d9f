// Drawing, of SVG and of the activation map; numbers come as they are, and nothing is made of a string but text.
const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 440, LEFT = 50, BOTTOM = 34;

export function make(tag, attributes = {}, ...children) {
  const made = attributes.xmlns ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) if (name !== "xmlns") made.setAttribute(name, value);
  made.append(...children);
  return made;
}

const svg = (tag, attributes = {}, ...children) => make(tag, {xmlns: SVG, ...attributes}, ...children);
const text = (x, y, said, anchor = "middle") => svg("text", {x, y, "text-anchor": anchor, class: "label"}, said);

export function dot(colour) {
  return svg("svg", {viewBox: "0 0 10 10", "aria-hidden": "true"}, svg("circle", {cx: 5, cy: 5, r: 5, fill: colour}));
}

const percent = (share) => `${(100 * share).toLocaleString("en", {maximumFractionDigits: share < .1 ? 1 : 0})}%`;

function frame(height, label, yLabel, top, shown) {
  const made = svg("svg", {viewBox: `0 0 ${WIDTH} ${height}`, role: "img", "aria-label": label});
  const y = (value) => height - BOTTOM - Math.min(value / top, 1) * (height - BOTTOM - 12);
  made.append(
    svg("path", {class: "axis", d: `M ${LEFT} 8 V ${height - BOTTOM} H ${WIDTH - 6}`}),
    text(LEFT - 5, height - BOTTOM, shown(0), "end"), text(LEFT - 5, 16, shown(top), "end"),
    svg("text", {class: "label", "text-anchor": "middle", transform: `translate(11 ${(height - BOTTOM) / 2}) rotate(-90)`}, yLabel),
  );
  return [made, y];
}

// Something over the last minutes: `values` (null where there is none) at Unix times `at`, and a band of [low, high].
export function overTime(at, values, {label, yLabel, band = null, shares = false, kind = ""}) {
  const height = 180, last = at[at.length - 1], span = Math.max(60, last - at[0]);
  const greatest = Math.max(...values.map((value) => value ?? 0), band ? Math.min(...band.map(([, high]) => high)) : 0, 0); // bands of few images are wide
  const top = shares ? Math.min(1, Math.max(.05, 1.15 * greatest)) : Math.max(1, 1.15 * greatest);
  const [made, y] = frame(height, label, yLabel, top, shares ? percent : (value) => String(Math.round(value)));
  const x = (when) => LEFT + (1 - (last - when) / span) * (WIDTH - LEFT - 6);
  if (band) {
    const there = at.map((when, i) => [x(when), ...band[i]]).filter((_, i) => values[i] !== null);
    const edge = [...there.map(([px, low]) => `${px} ${y(low)}`), ...there.reverse().map(([px, , high]) => `${px} ${y(high)}`)];
    if (edge.length) made.append(svg("polygon", {class: "band", points: edge.join(" ")}));
  }
  let path = "", pen = "M";
  values.forEach((value, i) => { if (value === null) pen = "M"; else { path += `${pen} ${x(at[i])} ${y(value)} `; pen = "L"; } });
  made.append(svg("path", {class: `line ${kind}`, d: path}));
  const minutes = span / 60;
  made.append(text(LEFT, height - BOTTOM + 13, `${minutes.toFixed(minutes < 10 ? 1 : 0)} min ago`, "start"), text(WIDTH - 6, height - BOTTOM + 13, "now", "end"),
    text((WIDTH + LEFT) / 2, height - 4, "time, minutes"));
  return made;
}

// A histogram of p-values: shares in buckets whose upper edges are given, beside what they are where p is uniform.
export function histogram(name, colour, edges, counts) {
  const height = 150, total = counts.reduce((a, b) => a + b, 0);
  const expected = edges.map((edge, i) => edge - (i ? edges[i - 1] : 0)), shares = counts.map((n) => (total ? n / total : 0));
  const [made, y] = frame(height, `p-values of ${name}`, "share of images", Math.max(...shares, ...expected), percent);
  const step = (WIDTH - LEFT - 6) / edges.length;
  edges.forEach((edge, i) => {
    const x = LEFT + i * step;
    made.append(
      svg("rect", {x: x + 6, width: step - 12, y: y(shares[i]), height: Math.max(0, height - BOTTOM - y(shares[i])), fill: colour}),
      svg("path", {class: "tick", d: `M ${x + 2} ${y(expected[i])} h ${step - 4}`}),
      text(x + step / 2, height - BOTTOM + 13, `≤ ${edge}`),
    );
  });
  made.append(text((WIDTH + LEFT) / 2, height - 4, "p-value"));
  return make("div", {}, make("h3", {}, `${name} (${total} images)`), made);
}

const EDGE = 4;

// The activation map: its background once, then whatever lands on it.
export function mapOn(canvas, map, colours) {
  const pen = canvas.getContext("2d"), size = canvas.width, margin = 34, side = size - margin - 8;
  const held = (value) => Math.max(-EDGE, Math.min(EDGE, value));
  const px = (z) => margin + ((held(z) + EDGE) / (2 * EDGE)) * side, py = (z) => 8 + side - ((held(z) + EDGE) / (2 * EDGE)) * side;
  return (latest) => {
    const style = getComputedStyle(document.documentElement), css = (name) => style.getPropertyValue(name).trim();
    pen.clearRect(0, 0, size, size);
    const rows = map.background.length, flat = map.background.flat(), least = Math.min(...flat), most = Math.max(...flat);
    map.background.forEach((row, i) => row.forEach((value, j) => {
      pen.globalAlpha = .45 * (most > least ? (value - least) / (most - least) : 0);
      pen.fillStyle = css("--band");
      const [left, right] = [j, j + 1].map((edge) => Math.round(margin + (edge / row.length) * side));
      const [upper, lower] = [i + 1, i].map((edge) => Math.round(8 + (1 - edge / rows) * side));
      pen.fillRect(left, upper, right - left, lower - upper);
    }));
    pen.globalAlpha = .6;
    map.points.forEach(([first, second], i) => {
      pen.fillStyle = colours[map.labels[i] % colours.length];
      pen.beginPath(); pen.arc(px(first), py(second), 1.8, 0, 2 * Math.PI); pen.fill();
    });
    pen.globalAlpha = 1;
    pen.fillStyle = css("--faint"); pen.font = "12px system-ui, sans-serif"; pen.textAlign = "center";
    for (const tick of [-4, -2, 0, 2, 4]) { pen.fillText(String(tick), px(tick), size - 16); pen.fillText(String(tick), margin - 14, py(tick) + 4); }
    pen.fillText("z₁ (standard deviations of the prior)", margin + side / 2, size - 3);
    pen.save(); pen.translate(10, 8 + side / 2); pen.rotate(-Math.PI / 2); pen.fillText("z₂ (standard deviations of the prior)", 0, 0); pen.restore();
    for (const {place, verdict} of latest) {
      if (!place) continue;
      const x = px(place[0]), y = py(place[1]);
      pen.lineWidth = 2; pen.beginPath();
      if (verdict === "CLEAN") { pen.strokeStyle = css("--ink"); pen.arc(x, y, 4, 0, 2 * Math.PI); }
      else { pen.strokeStyle = css("--red"); pen.lineWidth = 3; pen.moveTo(x - 5, y - 5); pen.lineTo(x + 5, y + 5); pen.moveTo(x + 5, y - 5); pen.lineTo(x - 5, y + 5); }
      pen.stroke();
    }
  };
}
