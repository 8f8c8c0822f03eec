// What both pages do alike: light and dark, tabs.

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

/** Tabs by the pattern of WAI-ARIA: arrows go from one to the next; opened is called with the panel's name. */
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

/** The labels' colours and names. */
export function legend(labels) {
  return labels.map(({ name, colour }) => {
    const swatch = element("i");
    swatch.style.background = colour;
    return element("span", {}, swatch, name);
  });
}

/** A question before something is deleted; whether the answer was yes. */
export function confirmed(text) {
  const dialog = document.getElementById("ask");
  document.getElementById("asked").textContent = text;
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((done) => {
    dialog.addEventListener("close", () => done(dialog.returnValue === "yes"), { once: true });
  });
}
