"""Writes tests/fixtures/text/templates.json: what Python's jinja2, set up as transformers does, makes of each template and conversation.

    python3 tests/tools/make_template_goldens.py            (needs jinja2; templates come from build/deps, see scripts/fetch_fixtures.sh)

Real templates are not copied: the file holds the expected texts. Small templates written here are held whole.
"""
import datetime
import json
import os
import sys

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import template_cases  # noqa: E402
from gguf_metadata import read_metadata  # noqa: E402

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
DEPS = os.environ.get("PHALANX_DEPS", os.path.join(ROOT, "build", "deps"))
NOW = 1721957696  # 2024-07-26 01:34:56 UTC


class Generation(jinja2.ext.Extension):
    """The tag that marks assistant text for training: a call block that returns its body."""
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller):
        return caller()


def environment():
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda form: datetime.datetime.fromtimestamp(NOW, datetime.timezone.utc).strftime(form)
    return env


def prepare(messages, parts):
    """What the room does to messages before rendering (text/text.h)."""
    out = json.loads(json.dumps(messages))
    for message in out:
        content = message.get("content")
        if isinstance(content, list) and not parts:
            content = "\n".join(p["text"] for p in content)
        message["content"] = "" if content is None else content
        for call in message.get("tool_calls") or []:
            arguments = call.get("function", {}).get("arguments")
            if isinstance(arguments, str):
                call["function"]["arguments"] = json.loads(arguments) if arguments.strip() else {}
    return out


def cut_after_final(text, message):
    """continue_final_message as transformers cuts it."""
    if isinstance(message, list):
        message = [p["text"] for p in message if "text" in p][-1]
    if message.strip() not in text:
        raise ValueError("final message does not appear")
    at = text.rindex(message.strip())
    if text[at:at + len(message.lstrip())] == message:
        return text[:at + len(message.lstrip())]
    return text[:at + len(message.strip())]


def render(env, source, case, special, parts=False):
    context = dict(special)
    context["documents"] = None
    context.update(case.get("kwargs") or {})
    messages = prepare(case["messages"], parts)
    context["messages"] = messages
    context["tools"] = case.get("tools")
    context["add_generation_prompt"] = case.get("generation_prompt", True) and not case.get("continue", False)
    try:
        text = env.from_string(source).render(**context)
        if case.get("continue"):
            text = cut_after_final(text, messages[-1]["content"])
        return {"text": text}
    except jinja2.exceptions.TemplateError as e:
        return {"raised": e.message} if type(e) is jinja2.exceptions.TemplateError else {"error": str(e)}
    except Exception as e:  # a TypeError and so on inside the template
        return {"error": str(e)}


def real_templates():
    for name in ("qwen3", "llama3", "llama3_1"):
        path = os.path.join(DEPS, "fixtures", "text", name, "tokenizer_config.json")
        with open(path, encoding="utf-8") as f:
            config = json.load(f)
        yield name, config["chat_template"], special_tokens(config)
    path = os.path.join(DEPS, "models", "smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
    meta = read_metadata(path)
    tokens = meta["tokenizer.ggml.tokens"]
    names = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
    special = {to: tokens[meta[f"tokenizer.ggml.{key}_token_id"]] for key, to in names.items()}
    yield "smollm2", meta["tokenizer.chat_template"], special
    with open(os.path.join(ROOT, "models", "demo", "tokenizer_config.json"), encoding="utf-8") as f:
        config = json.load(f)
    yield "demo", config["chat_template"], special_tokens(config)


def special_tokens(config):
    out = {}
    for name in ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"):
        value = config.get(name)
        if value is not None:
            out[name] = value["content"] if isinstance(value, dict) else value
    if config.get("additional_special_tokens") is not None:
        out["additional_special_tokens"] = config["additional_special_tokens"]
    return out


def main():
    env = environment()
    conversations = template_cases.conversations()
    out = {"unix_time": NOW, "conversations": conversations, "real": {}, "written": [], "snippets": [], "different": []}
    for name, source, special in real_templates():
        out["real"][name] = [render(env, source, case, special) for case in conversations]
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    for name, parts, source in template_cases.WRITTEN:
        out["written"].append({"name": name, "template": source,
                               "expected": [render(env, source, case, special, parts) for case in conversations]})
    case = {"messages": template_cases.SNIPPET_MESSAGES, "kwargs": template_cases.SNIPPET_KWARGS}
    for key, sources in (("snippets", template_cases.SNIPPETS), ("different", template_cases.KNOWN_DIFFERENCES)):
        out[key] = [{"template": source, "expected": render(env, source, case, special)} for source in sources]
    out["snippet_messages"], out["snippet_kwargs"] = template_cases.SNIPPET_MESSAGES, template_cases.SNIPPET_KWARGS
    path = os.path.join(ROOT, "tests", "fixtures", "text", "templates.json")
    with open(path, "w", encoding="utf-8") as f:
        json.dump(out, f, ensure_ascii=False, indent=0, separators=(",", ":"))
        f.write("\n")
    count = len(conversations) * (len(out["real"]) + len(out["written"])) + len(out["snippets"])
    errors = [s["template"] + " -> " + json.dumps(s["expected"]) for s in out["snippets"] if "text" not in s["expected"]]
    print(f"{path}: {count} goldens, {os.path.getsize(path)} bytes; {len(errors)} snippets fail in Python too:")
    print("\n".join(errors))


if __name__ == "__main__":
    main()
