// What the pages of a replica share.
//
// Everything the server says is put into a page as text, never as markup: names of streams are whatever producers
// choose to send.

export const TOKEN_KEY = "supsup-token"; // of the session storage: kept until the tab is closed

export const byId = (id) => document.getElementById(id);

// What the server takes for a token: one word that a header can carry.
export const isToken = (text) => /^[!-~]+$/.test(text);

// Headers with the token, where there is one.
export function withToken(headers) {
  const token = sessionStorage.getItem(TOKEN_KEY);
  return token ? { ...headers, authorization: `Bearer ${token}` } : headers;
}

// Foreign text as one line: control characters, and those that turn text around, by their number.
export function plain(value, limit = 500) {
  const text = String(value);
  const shown = text.slice(0, limit).replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, (letter) => {
    return `\\u${letter.codePointAt(0).toString(16).padStart(4, "0")}`;
  });
  return text.length > limit ? `${shown}…` : shown;
}

export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "scope" || name === "role") made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children);
  return made;
}

// The setters touch the page only where something is different: no flicker, and selections stay.
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function show(node, visible) {
  if (node.hidden === visible) node.hidden = !visible;
}
