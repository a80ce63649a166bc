"""The text of one row of a dataset, whatever its columns are called."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from numprune.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHATS = ("messages", "conversations", "conversation", "chat")
"""Columns that hold the turns of a conversation."""
PLAIN = ("text", "content", "sentence", "document")
"""Columns that hold a text as it is, the first of them that is there."""
_ANSWERS = ("completion", "response", "answer", "output", "chosen")
_QUESTIONS = ("prompt", "instruction", "question")
_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
"""What other collections call the roles that chat templates know."""


class RowReader:
    """Makes texts of rows.

    Args:
        tokenizer: whose chat template writes conversations; without one, or without a template, their turns are joined
            by line breaks.
        column: the column to take; None for the first that is known.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None = None, column: str | None = None):
        self.tokenizer, self.column = tokenizer, column

    def __call__(self, row: Any, where: str) -> str:
        """The text of `row`; `where` names it in errors.

        Raises:
            InputError: the row has no text; its keys are named.
        """
        if isinstance(row, str) and self.column is None:
            return row
        if not isinstance(row, dict):
            raise InputError(
                f'{where} is {_kind(row)}, where an object with a text is expected, such as {{"text": ...}}; mend it.'
            )
        if self.column is not None:
            if self.column not in row:
                raise InputError(f"{where} has no column {self.column}; its keys are {_keys(row)}.")
            return self._value(row[self.column], f"{where}, column {self.column},")
        for name in CHATS:
            if isinstance(row.get(name), list):
                return self._value(row[name], f"{where}, column {name},")
        for name in PLAIN:
            if name in row:
                return self._value(row[name], f"{where}, column {name},")
        question = next((name for name in _QUESTIONS if row.get(name)), None)
        answer = next((name for name in _ANSWERS if row.get(name)), None)
        if question and answer:
            return self._pair(row, question, answer, where)
        strings = [name for name, value in row.items() if isinstance(value, str)]
        if len(row) == 1 and strings:
            return row[strings[0]]
        raise InputError(
            f"{where} has no column of text that is known by name; its keys are {_keys(row)}: name one with"
            " --text-column (text_column)."
        )

    def _value(self, value: Any, where: str) -> str:
        if isinstance(value, str):
            return value
        if isinstance(value, list) and value and all(isinstance(turn, dict) for turn in value):
            return self._chat(value, where)
        raise InputError(f"{where} is {_kind(value)}, not a string or a conversation; mend it.")

    def _pair(self, row: dict[str, Any], question: str, answer: str, where: str) -> str:
        asked, answered = row[question], row[answer]
        if isinstance(asked, list) and isinstance(answered, list):
            return self._value([*asked, *answered], f"{where}, column {question},")
        parts = [asked, row.get("input") or row.get("context"), answered]
        parts = [self._value(part, where) for part in parts if part]
        if question == "prompt":
            joined = parts[-2][-1:].isspace() or parts[-1][:1].isspace()
            return ("" if joined else "\n").join(parts)
        return "\n\n".join(parts)

    def _chat(self, turns: list[dict[str, Any]], where: str) -> str:
        messages = []
        for turn in turns:
            role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
            if isinstance(content, list):  # parts of several kinds, of which the texts are read
                content = "".join(part.get("text") or "" for part in content if isinstance(part, dict))
            if not isinstance(role, str) or not isinstance(content, str):
                raise InputError(
                    f"{where} has a turn with the keys {_keys(turn)}; role and content, or from and value, are"
                    " expected."
                )
            messages.append({"role": _ROLES.get(role, role), "content": content})
        if self.tokenizer is None or not self.tokenizer.chat_template:
            return "\n".join(message["content"] for message in messages)
        try:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False)
        except Exception as error:  # templates raise whatever they want
            raise InputError(
                f"{where} does not fit the chat template of this model's tokenizer ({str(error).splitlines()[0]});"
                " mend the row, or name another column with --text-column (text_column)."
            ) from error
        # The tokenizer puts it there itself.
        bos = self.tokenizer.bos_token
        return text.removeprefix(bos) if bos and self._adds_bos() else text

    def _adds_bos(self) -> bool:
        return self.tokenizer("a")["input_ids"][:1] == [self.tokenizer.bos_token_id]


def _keys(row: dict[str, Any]) -> str:
    names = [str(name) for name in row]
    return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "") if names else "none"


def _kind(value: Any) -> str:
    names = {"NoneType": "null", "dict": "an object", "list": "a list", "int": "a number", "float": "a number"}
    return {**names, "bool": "true or false", "str": "a string"}.get(type(value).__name__, type(value).__name__)
