// The page of a replica's addresses: what /openapi.json says, for people, and a form to try each of them.
//
// It knows as much of OpenAPI 3.1 as that document uses. All addresses are relative, as on the other page.

import { TOKEN_KEY, byId, element, isToken, plain, say, show, withToken } from "./parts.js";

let schemas = {};

// ---------------------------------------------------------------- the document

async function load() {
  let response, said;
  try {
    response = await fetch("openapi.json", { headers: withToken({}), cache: "no-store" });
    if (response.status === 401) return askForToken();
    said = await response.json();
  } catch {
    return trouble("The server does not answer: load this page again.");
  }
  if (!response.ok) return trouble(`The server answers with status ${response.status}.`);
  showDocument(said);
}

function trouble(text) {
  say(byId("trouble"), text);
  show(byId("trouble"), true);
}

function showDocument({ info, paths, components }) {
  schemas = components.schemas;
  say(byId("title"), plain(info.title));
  say(byId("version"), plain(info.version));
  say(byId("description"), plain(info.description));
  const operations = Object.entries(paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, operation]) => operationOf(method, path, operation)),
  );
  byId("operations").replaceChildren(...operations);
  show(byId("main"), true);
}

function operationOf(method, path, operation) {
  const { summary, parameters = [], requestBody, responses, security } = operation;
  const needed = security?.length === 0 ? "open to everybody" : "";
  const heading = element(
    "summary",
    {},
    element("span", { className: `method ${method}` }, method.toUpperCase()),
    element("code", { "data-testid": "path" }, path),
    element("span", { className: "light" }, summary),
    element("small", { className: "open" }, needed),
  );
  const told = [
    ...(parameters.length ? [element("h3", {}, "Parameters"), fieldsOf(parameters.map(parameterField))] : []),
    ...(requestBody ? [element("h3", {}, "Request"), ...contentOf(requestBody.content)] : []),
    element("h3", {}, "Responses"),
    ...Object.entries(responses).flatMap(([status, response]) => responseOf(status, response)),
    element("h3", {}, "Try it"),
    tryForm(method, path, parameters, requestBody),
  ];
  const body = element("div", { className: "told" }, ...told);
  return element("details", { className: "card operation", "data-testid": "operation" }, heading, body);
}

function responseOf(status, { description, content }) {
  const text = element("span", { className: "light" }, description);
  return [element("h4", { "data-testid": "status" }, `${status} `, text), ...contentOf(content)];
}

function contentOf(content) {
  return Object.entries(content).flatMap(([kind, { schema, example }]) => [
    element("ul", {}, field(kind, schema)),
    ...(example ? [element("pre", { "data-testid": "example", tabIndex: 0 }, pretty(example))] : []),
  ]);
}

// ---------------------------------------------------------------- schemas

const resolved = (schema) => (schema.$ref ? schemas[schema.$ref.split("/").pop()] : schema);
const fieldsOf = (fields) => element("ul", { className: "fields-of" }, ...fields);
const parameterField = ({ name, required, schema }) => field(name, schema, required);

// A value: its name, what it may be, and below that the fields of it (or of each item).
function field(name, schema, required = false) {
  const whole = resolved(schema);
  const inner = whole.type === "array" ? resolved(whole.items ?? {}) : whole;
  const must = inner.required ?? [];
  const below = Object.entries(inner.properties ?? {}).map(([key, each]) => field(key, each, must.includes(key)));
  const text = required ? `${typeText(whole)}, required` : typeText(whole);
  const line = [element("code", {}, name), " ", element("span", { className: "light small" }, text)];
  return element("li", {}, ...line, ...(below.length ? [fieldsOf(below)] : []));
}

function typeText(schema) {
  const { type, items, format, description, enum: choices, pattern, minimum, maximum, maxLength, minItems } = schema;
  const words = [type === "array" && items ? `array of ${resolved(items).type}` : (type ?? "anything")];
  if (format) words.push(format);
  if (choices) words.push(`one of ${choices.join(", ")}`);
  if (pattern) words.push(`like ${pattern}`);
  if (minimum !== undefined) words.push(`${minimum} to ${maximum}`);
  if (maxLength !== undefined) words.push(`at most ${maxLength} characters`);
  if (minItems !== undefined) words.push(`at least ${minItems}`);
  if (schema.default !== undefined) words.push(`default ${schema.default}`);
  if (description) words.push(description);
  return words.join(", ");
}

// JSON with numbers side by side: an image has hundreds.
function pretty(value) {
  return JSON.stringify(value, null, 2).replace(/\[[^[\]{}"]*\]/g, (numbers) => numbers.replace(/\s+/g, " "));
}

// ---------------------------------------------------------------- try it

function tryForm(method, path, parameters, requestBody) {
  const inputs = parameters.map(inputOf);
  const body = requestBody ? bodyArea(requestBody) : null;
  const status = element("strong", { "data-testid": "response-status", role: "status" });
  const text = element("pre", { "data-testid": "response", tabIndex: 0, hidden: true });
  const form = element(
    "form",
    { className: "try" },
    ...(inputs.length ? [element("div", { className: "fields" }, ...inputs.map(labelled))] : []),
    ...(body ? [body] : []),
    element("button", { type: "submit", className: "primary", "data-testid": "send" }, "Send"),
    status,
    text,
  );
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const address = addressOf(path, parameters, inputs);
    const answered = await send(method, address, body?.value);
    say(status, answered.status);
    say(text, answered.text);
    show(text, answered.text !== "");
  });
  return form;
}

function inputOf({ name, required = false, schema }) {
  if (schema.enum) return element("select", { name, required }, ...schema.enum.map((each) => element("option", {}, each)));
  const input = element("input", { name, required, value: schema.default ?? "", autocomplete: "off" });
  if (schema.pattern) input.pattern = schema.pattern;
  return input;
}

function labelled(input) {
  return element("label", { className: "field" }, input.name, input);
}

function bodyArea({ content }) {
  const [{ example }] = Object.values(content);
  return element("textarea", { value: pretty(example), spellcheck: false, "aria-label": "Body", "data-testid": "body" });
}

function addressOf(path, parameters, inputs) {
  const query = new URLSearchParams();
  let filled = path.slice(1);
  parameters.forEach((parameter, place) => {
    const { value } = inputs[place];
    if (parameter.in === "path") filled = filled.replace(`{${parameter.name}}`, encodeURIComponent(value));
    else if (value !== "") query.set(parameter.name, value);
  });
  return query.size ? `${filled}?${query}` : filled;
}

async function send(method, address, body) {
  const headers = withToken(body === undefined ? {} : { "content-type": "application/json" });
  try {
    const response = await fetch(address, { method: method.toUpperCase(), headers, body, cache: "no-store" });
    const bytes = await response.arrayBuffer();
    const kind = response.headers.get("content-type") ?? "";
    return { status: `${response.status} ${response.statusText}`, text: readable(bytes, kind) };
  } catch {
    return { status: "The server does not answer.", text: "" };
  }
}

function readable(bytes, kind) {
  if (!/json|text/.test(kind)) return `${bytes.byteLength} bytes of ${kind}`;
  const text = new TextDecoder().decode(bytes);
  return kind.includes("json") ? pretty(JSON.parse(text)) : text;
}

// ---------------------------------------------------------------- the token

function askForToken() {
  show(byId("token-refused"), sessionStorage.getItem(TOKEN_KEY) !== null);
  sessionStorage.removeItem(TOKEN_KEY);
  show(byId("token-form"), true);
  byId("token").focus();
}

byId("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const token = byId("token").value.trim();
  byId("token").value = "";
  if (!isToken(token)) return show(byId("token-refused"), true);
  sessionStorage.setItem(TOKEN_KEY, token);
  show(byId("token-form"), false);
  load();
});

load();
