"""Chat templates: finding a model's, and rendering messages with it in a sandbox.

Owns resolution from a model directory and rendering. A template is code of whoever made the model: it runs in an
immutable sandbox, sees only what `Template.render` hands in, and its failures come back as typed errors. Knows nothing
of tokenizers, requests or engines; canonical prompt text for routing belongs to `_fast`.

Invariants: rendering has no side effects; equal arguments give equal text (unless the template asks for the date).
"""

from xinf.chat.chatml import ChatMl
from xinf.chat.resolve import CHATML, resolve_template
from xinf.chat.template import Message, Template, render

__all__ = ["CHATML", "ChatMl", "Message", "Template", "render", "resolve_template"]
