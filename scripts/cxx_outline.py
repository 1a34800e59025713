"""What a C++ file declares and defines, found without a compiler.

Good enough for a house that is formatted by clang-format: comments, strings
and preprocessor lines are blanked, braces are matched, and what stands before
a brace or a semicolon says what it is. Used by scripts/tidy.
"""

import bisect
import re

_LITERALS = re.compile(
    r"//(?:[^\n\\]|\\.|\\\n)*"
    r"|/\*.*?\*/"
    r'|\b(?:u8|[uUL])?R"(?P<mark>[^()\s\\]{0,16})\(.*?\)(?P=mark)"'
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|\b\d(?:'?[\w.])*"  # 1'000'000 begins no character
    r"|'(?:[^'\\\n]|\\.)+'", re.DOTALL)
_PREPROCESSOR = re.compile(r"^[ \t]*#(?:[^\n\\]|\\.|\\\n)*",
                           re.MULTILINE | re.DOTALL)
_NOT_NEWLINE = re.compile(r"[^\n]")
_PUNCTUATION = re.compile(r"[(){};]")
_ACCESS = re.compile(r"\s*(public|private|protected)\s*:(?!:)")
_ATTRIBUTE = re.compile(
    r"\[\[.*?\]\]|\balignas\s*\([^()]*\)"
    r"|\b__attribute__\s*\(\([^()]*(?:\([^()]*\))?[^()]*\)\)", re.DOTALL)
_CLASS = re.compile(r"(?:(?:typedef|static|inline|constexpr|const|friend)\s+)*"
                    r"(class|struct|union|enum(?:\s+(?:class|struct))?)\b")
_CLASS_NAME = re.compile(r"((?:\w+\s*::\s*)*\w+)\s*(?:final\s*)?(?::(?!:)|$|<)")
_DECLARATOR = re.compile(
    r"((?:\w+\s*(?:<[^()]*>)?\s*::\s*)*)"
    r"(operator\s*\(\s*\)|operator\b[^()]*|~?\s*\w+)\s*$")
_MACRO = re.compile(r"[A-Z][A-Z0-9_]+$")
# What takes parentheses before the name of a function.
_BEFORE_NAME = {"requires", "alignas", "decltype", "noexcept", "explicit",
                "__attribute__"}


def _blank(match):
    return _NOT_NEWLINE.sub(" ", match.group())


def _blank_literal(match):
    text = match.group()
    if text[0].isdigit():
        return text
    if text[0] == "/":
        return _NOT_NEWLINE.sub(" ", text)
    return '"' + _NOT_NEWLINE.sub(" ", text[1:-1]) + '"'


def without_literals(text):
    """`text` with comments blanked and strings emptied, line for line."""
    return _LITERALS.sub(_blank_literal, text)


class Declaration:
    """A function, constant or type that a scope declares.

    kind      "function", "constant" or "type"
    name      the last part: Step
    full      as a definition spells it: Machine::Step
    offset    where the declaration begins, into the text
    end       behind its last character
    body      a function with a body; a type with members
    access    "public", "private", "protected"
    implicit  called or required by what no caller names: overrides, operators,
              constructors
    virtual   declared so
    """

    def __init__(self, kind, name, full, offset, end, **more):
        self.kind, self.name, self.full = kind, name, full
        self.offset, self.end = offset, end
        self.body = more.get("body", False)
        self.access = more.get("access", "public")
        self.implicit = more.get("implicit", False)
        self.virtual = more.get("virtual", False)


class _Scope:
    def __init__(self, kind, name="", access="public", declaration=None):
        self.kind, self.name, self.access = kind, name, access
        self.declaration = declaration


class Outline:
    """Declarations of one file. `balanced` is false where braces do not match:
    then nothing else is to be relied on."""

    def __init__(self, text):
        self.words_text = without_literals(text)  # macros are still in it
        self.code = _PREPROCESSOR.sub(_blank, self.words_text)
        self.declarations = []
        self.balanced = True
        self._lines = [m.start() for m in re.finditer("\n", text)]
        self._read()

    def line_of(self, offset):
        return bisect.bisect_left(self._lines, offset) + 1

    def lines_of(self, declaration):
        """How many lines it takes, signature and braces included."""
        return (self.line_of(declaration.end - 1)
                - self.line_of(declaration.offset) + 1)

    def functions(self):
        return [d for d in self.declarations
                if d.kind == "function" and d.body]

    def _pairs(self, tokens):
        """Index of the closing brace for each opening one."""
        pairs, open_braces = {}, []
        for index, token in enumerate(tokens):
            if token.group() == "{":
                open_braces.append(index)
            elif token.group() == "}":
                if not open_braces:
                    self.balanced = False
                    return pairs
                pairs[open_braces.pop()] = index
        self.balanced = not open_braces
        return pairs

    def _read(self):
        tokens = list(_PUNCTUATION.finditer(self.code))
        pairs = self._pairs(tokens)
        if not self.balanced:
            return
        scopes = [_Scope("namespace")]
        start = depth = index = 0
        while index < len(tokens):
            token = tokens[index]
            mark = token.group()
            if mark == "(":
                depth += 1
            elif mark == ")":
                depth -= 1
            elif mark == ";" and depth == 0:
                self._statement(scopes[-1], start, token.start())
                start = token.end()
            elif mark == "}":
                closed = scopes.pop()
                if closed.declaration:
                    closed.declaration.end = token.end()
                start = token.end()
            elif mark == "{":
                closing = pairs[index]
                kind = "value" if depth else self._kind(start, token.start())
                if kind in ("namespace", "class"):
                    scopes.append(self._open(kind, scopes[-1], start, token))
                    start = token.end()
                else:
                    end = tokens[closing].end()
                    if kind == "function":
                        self._function(scopes[-1], start, token.start(), end,
                                       True)
                        start = end
                    elif kind == "enum":
                        self._open(kind, scopes[-1], start,
                                   token).declaration.end = end
                        start = end
                    index = closing
            index += 1

    def _head(self, scope, start, end):
        """Text of a statement without access labels and template lists, and
        where it begins."""
        label = _ACCESS.match(self.code, start, end)
        while label:
            if scope:
                scope.access = label.group(1)
            start = label.end()
            label = _ACCESS.match(self.code, start, end)
        head = self.code[start:end]
        lead = len(head) - len(head.lstrip())
        start += lead
        head = _ATTRIBUTE.sub(_blank, head[lead:].rstrip())
        while head.lstrip().startswith("template"):
            head = _without_template(head)
        return head.strip(), start

    def _kind(self, start, end):
        """What a brace that follows a head opens."""
        head, _ = self._head(None, start, end)
        if re.match(r"(inline\s+)?namespace\b", head) or (
                re.match(r'extern\s+"', head) and "(" not in head):
            return "namespace"
        match = _CLASS.match(head)
        if match and _top_level(head, "(") < 0 and _top_level(head, "=") < 0:
            return "enum" if match.group(1).startswith("enum") else "class"
        paren, equals = _top_level(head, "("), _top_level(head, "=")
        if paren < 0 or 0 <= equals < paren:
            return "value"
        # The braces of a member in a constructor's list follow its name.
        if re.search(r"\)\s*(noexcept\s*)?:(?!:)", head) and re.search(
                r"[\w>]$", head):
            return "value"
        return "function"

    def _open(self, kind, scope, start, token):
        head, begin = self._head(scope, start, token.start())
        if kind == "namespace":
            return _Scope("namespace")
        keyword = _CLASS.match(head)
        rest = re.sub(r"\b[A-Z][A-Z_]+\b(\([^()]*\))?\s+(?=\w)", " ",
                      head[keyword.end():]).strip()
        name = _CLASS_NAME.match(rest)
        name = re.sub(r"\s", "", name.group(1)) if name else ""
        declaration = Declaration(
            "type", name.split("::")[-1], _join(scope.name, name), begin,
            token.end(), body=True, access=scope.access)
        self.declarations.append(declaration)
        return _Scope("class", declaration.full,
                      "private" if keyword.group(1) == "class" else "public",
                      declaration)

    def _statement(self, scope, start, end):
        head, begin = self._head(scope, start, end)
        if not head or re.match(
                r"(friend|static_assert|extern\s+template|namespace|typedef)\b",
                head):
            return
        alias = re.match(r"using\s+(\w+)\s*=", head)
        if alias:
            self._add("type", scope, alias.group(1), begin, end, body=True)
            return
        if re.match(r"using\b", head):
            return
        forward = re.match(r"(?:enum\s+)?(?:class|struct|union|enum)\s+(\w+)"
                           r"(\s*:\s*[\w:]+)?$", head)
        if forward:
            self._add("type", scope, forward.group(1), begin, end)
            return
        paren, equals = _top_level(head, "("), _top_level(head, "=")
        if paren >= 0 and not 0 <= equals < paren:
            self._function(scope, start, end, end, False)
            return
        constant = re.search(r"\b(k[A-Z]\w*)\s*(\[[^\]]*\]\s*)*(=|\{|$)",
                             head if equals < 0 else head[:equals + 1])
        if constant:
            self._add("constant", scope, constant.group(1), begin, end)

    def _add(self, kind, scope, name, offset, end, **more):
        self.declarations.append(Declaration(
            kind, name, _join(scope.name, name), offset, end,
            access=scope.access, **more))

    def _function(self, scope, start, head_end, end, body):
        head, begin = self._head(scope, start, head_end)
        name = _function_name(head)
        if name is None:
            return
        qualifier, last, paren = name
        full = _join(scope.name, qualifier + last)
        if _MACRO.match(last):  # TEST(Suite, Name)
            if not body:
                return  # a field with an annotation, or a macro's call
            arguments = re.match(r"\(\s*(\w+)\s*,\s*(\w+)\s*\)", head[paren:])
            if arguments:
                full = ".".join(arguments.groups())
        parts = full.split("::")
        implicit = (
            last.startswith(("operator", "~"))
            or (len(parts) > 1 and parts[-1] == parts[-2])
            or re.search(r"\b(override|final)\b|=\s*(delete|default)$",
                         head[paren:]) is not None
            or re.search(r"\boperator\b", head[:paren]) is not None
            or head.startswith("friend"))
        self.declarations.append(Declaration(
            "function", last, full, begin, end, body=body,
            access=scope.access, implicit=implicit,
            virtual=head.startswith("virtual")))


def _join(scope, name):
    return f"{scope}::{name}" if scope and name else scope or name


def _top_level(head, mark):
    """Where `mark` first stands outside of parentheses and template lists."""
    depth = angle = 0
    for match in re.finditer(
            r"operator\s*(?:\(\s*\)|<=>|<<=?|>>=?|->|[<>=!+*/%&|^-]=?=?)"
            r"|<=|>=|==|!=|->|<<|[()<>=]", head):
        text = match.group()
        if len(text) > 1:
            continue
        if depth == 0 and angle == 0 and text == mark:
            return match.start()
        if text == "(":
            depth += 1
        elif text == ")":
            depth -= 1
        elif depth == 0 and text == "<":
            angle += 1
        elif depth == 0 and text == ">" and angle:
            angle -= 1
    return -1


def _without_template(head):
    """`head` without a leading template<...>."""
    depth = 0
    for match in re.finditer(r"[<>()]", head):
        text = match.group()
        depth += 1 if text in "<(" else -1
        if depth == 0:
            return head[match.end():].lstrip()
    return ""


def _function_name(head):
    """(qualifier, name, offset of the parameters) or None."""
    offset = 0
    while True:
        paren = _top_level(head[offset:], "(")
        if paren < 0:
            return None
        paren += offset
        match = _DECLARATOR.search(head, 0, paren)
        call = re.search(r"operator\s*$", head[:paren])
        if call:
            after = re.match(r"\(\s*\)\s*", head[paren:])
            if not after:
                return None
            qualifier = re.search(
                r"((?:\w+\s*(?:<[^()]*>)?\s*::\s*)*)operator\s*$",
                head[:paren]).group(1)
            return re.sub(r"\s", "", qualifier), "operator()", paren + after.end()
        if match and match.group(2) not in _BEFORE_NAME:
            name = re.sub(r"\s+", " ", match.group(2)).strip()
            qualifier = re.sub(r"\s|<[^()]*>", "", match.group(1))
            return qualifier, name.replace("~ ", "~"), paren
        # Skip these parentheses.
        depth = 0
        for mark in re.finditer(r"[()]", head[paren:]):
            depth += 1 if mark.group() == "(" else -1
            if depth == 0:
                offset = paren + mark.end()
                break
        else:
            return None
