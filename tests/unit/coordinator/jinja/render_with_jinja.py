#!/usr/bin/env python3
"""Renders the chat test cases with Jinja itself: what ours must equal.

  render_with_jinja.py CASES_DIR NAME=TOKENIZER_CONFIG ...

Prints one JSON object:
  conversations  {template: {conversation: result}}, for each NAME and each
                 families/*.jinja
  expressions    [result], one a line of expressions.txt that is not empty or
                 a comment
  refused        [result], one such a line of refused.txt, up to " ## "
  snippets       [result], one a part of snippets.txt between lines of "====="

A result is {"text": ...}, {"raised": message of raise_exception} or
{"error": any other exception}. The environment is the one that Hugging Face
transformers renders chat templates in.

Exits with 3 if Jinja is not installed, with 4 if a file is missing.
"""
import datetime
import json
import pathlib
import sys

try:
    import jinja2
    import jinja2.ext
    import jinja2.nodes
    import jinja2.sandbox
except ImportError as error:
    print(f"{error}: python3-jinja2 is missing, run scripts/setup",
          file=sys.stderr)
    sys.exit(3)

# 2024-07-26 12:34:56.789012 UTC; the C++ test uses the same.
NOW = datetime.datetime(2024, 7, 26, 12, 34, 56, 789012)


class Generation(jinja2.ext.Extension):
    """{% generation %}: prints its body, as a scope of its own."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"],
                                       drop_needle=True)
        call = self.call_method("_body")
        return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _body(self, caller):
        return caller()


class Raised(jinja2.TemplateError):
    """raise_exception was called."""


def raise_exception(message):
    raise Raised(message)


def tojson(value, ensure_ascii=False, indent=None, separators=None,
           sort_keys=False):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent,
                      separators=separators, sort_keys=sort_keys)


def environment():
    env = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True,
        extensions=[Generation, jinja2.ext.loopcontrols])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = NOW.strftime
    return env


def outcome(template, variables):
    """`template` returns the compiled template, or raises."""
    try:
        return {"text": template().render(**variables)}
    except Raised as error:
        return {"raised": str(error)}
    except Exception as error:  # whatever a template can do wrong
        return {"error": f"{type(error).__name__}: {error}"}


def token_text(token):
    return token["content"] if isinstance(token, dict) else token


def special_tokens(config):
    names = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token",
             "cls_token", "mask_token")
    return {name: token_text(config[name])
            for name in names if config.get(name) is not None}


def render_all(env, source, tokens, conversations):
    compiled = env.from_string(source)
    return {
        c["name"]: outcome(lambda: compiled, {
            **tokens,
            "documents": None,
            **(c.get("extra") or {}),
            "messages": c["messages"],
            "tools": c.get("tools"),
            "add_generation_prompt": c.get("add_generation_prompt", True),
        })
        for c in conversations
    }


def read_lines(path):
    lines = path.read_text(encoding="utf-8").split("\n")
    return [line for line in lines if line and line[0] != "#"]


def read_parts(path):
    parts = [[]]
    for line in path.read_text(encoding="utf-8").split("\n"):
        if line == "=====":
            parts.append([])
        else:
            parts[-1].append(line)
    return ["\n".join(lines) for lines in parts]


def main():
    cases = pathlib.Path(sys.argv[1])
    env = environment()
    read = lambda path: json.loads(path.read_text(encoding="utf-8"))
    conversations = read(cases / "conversations.json")
    variables = read(cases / "variables.json")

    rendered = {}
    for argument in sys.argv[2:]:
        name, _, path = argument.partition("=")
        config = read(pathlib.Path(path))
        rendered[name] = render_all(env, config["chat_template"],
                                    special_tokens(config), conversations)
    family_tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    for path in sorted(cases.glob("families/*.jinja")):
        rendered[path.stem] = render_all(
            env, path.read_text(encoding="utf-8"), family_tokens,
            conversations)

    render = lambda source: outcome(lambda: env.from_string(source), variables)
    print(json.dumps({
        "conversations": rendered,
        "expressions": [render(line)
                        for line in read_lines(cases / "expressions.txt")],
        "refused": [render(line.partition(" ## ")[0])
                    for line in read_lines(cases / "refused.txt")],
        "snippets": [render(part)
                     for part in read_parts(cases / "snippets.txt")],
    }))


if __name__ == "__main__":
    try:
        main()
    except FileNotFoundError as error:
        print(f"{error}: run scripts/setup", file=sys.stderr)
        sys.exit(4)
