// Shared by both pages: theme, tabs, layout of pictures, dialogs.

export function themes(button) {
  const kept = localStorage.getItem("isopose-theme");
  if (kept) document.documentElement.dataset.theme = kept;
  button.addEventListener("click", () => {
    const dark = document.documentElement.dataset.theme
      ? document.documentElement.dataset.theme === "dark"
      : matchMedia("(prefers-color-scheme: dark)").matches;
    document.documentElement.dataset.theme = dark ? "light" : "dark";
    localStorage.setItem("isopose-theme", document.documentElement.dataset.theme);
  });
}

/** Make tabs (WAI-ARIA pattern): arrow keys select the next tab; opened is called with the panel's name. */
export function tabs(list, opened) {
  const all = [...list.querySelectorAll('[role="tab"]')];
  const open = (tab) => {
    for (const one of all) {
      const chosen = one === tab;
      one.setAttribute("aria-selected", chosen);
      one.tabIndex = chosen ? 0 : -1;
      document.getElementById(one.getAttribute("aria-controls")).hidden = !chosen;
    }
    opened(tab.id.replace("tab-", ""));
  };
  for (const tab of all) tab.addEventListener("click", () => open(tab));
  list.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const usable = all.filter((tab) => !tab.disabled);
    const next = usable[(usable.indexOf(document.activeElement) + step + usable.length) % usable.length];
    next.focus();
    open(next);
  });
  return (name) => open(document.getElementById(`tab-${name}`));
}

export function element(tag, { text, ...properties } = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  if (text !== undefined) made.textContent = text;
  made.append(...children);
  return made;
}

/** Lay out pictures of one shape in the number of columns that makes them largest; again after every resize. */
export function arrange(place) {
  const gap = 10, caption = 30;
  const largest = () => {
    const pictures = [...place.children].filter((one) => !one.hidden && one.querySelector("canvas"));
    const wide = place.clientWidth, high = place.clientHeight;
    if (!pictures.length || !wide || !high) return;
    const tall = Math.max(...pictures.map((one) => { const { width, height } = one.querySelector("canvas"); return height / width; }));
    let best = { side: 0, columns: 1 };
    for (let columns = 1; columns <= pictures.length; columns++) {
      const rows = Math.ceil(pictures.length / columns);
      const across = (wide - gap * (columns - 1)) / columns, down = ((high - gap * (rows - 1)) / rows - caption) / tall;
      const side = Math.floor(Math.min(across, down));
      if (side > best.side) best = { side, columns };
    }
    // If the place is too low, pictures keep a minimum of 150 pixels, and the place scrolls.
    const side = Math.max(best.side, Math.min(150, wide)), columns = Math.max(1, Math.min(pictures.length, Math.floor((wide + gap) / (side + gap))));
    place.style.setProperty("grid-template-columns", `repeat(${best.side < 150 ? columns : best.columns}, ${side}px)`);
  };
  new ResizeObserver(largest).observe(place);
  return largest;
}

/** Return the labels' colors and names as elements. */
export function legend(labels) {
  return labels.map(({ name, color }) => {
    const swatch = element("i");
    swatch.style.background = color;
    return element("span", {}, swatch, name);
  });
}

/** Offer the windows of a scan in a list; the chosen window stays chosen if the scan has it. */
export function offerWindows(list, { windows }) {
  const before = list.value, names = Object.keys(windows);
  list.replaceChildren(...names.map((name) => element("option", { text: name, value: name })));
  list.value = names.includes(before) ? before : names[0];
}

/** Return the scan's value that a stored number stands for, with its unit where it has one. */
export function valueOf({ slope, intercept, unit }, stored) {
  const value = slope * stored + intercept;
  return unit ? `${Math.round(value)} ${unit}` : String(Number(value.toPrecision(5)));
}

/** Ask before something is deleted; return whether the answer was yes. */
export function confirmed(text) {
  const dialog = document.getElementById("ask");
  document.getElementById("asked").textContent = text;
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((done) => {
    dialog.addEventListener("close", () => done(dialog.returnValue === "yes"), { once: true });
  });
}
