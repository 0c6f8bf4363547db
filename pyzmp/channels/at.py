"""A class of nodes, as callers of one node see it."""

from __future__ import annotations

import inspect
from typing import Any

from pyzmp.channels.declare import ServiceMethod, methods_of, parameters_of, topics_of
from pyzmp.channels.parameter import Parameter
from pyzmp.channels.topic import Topic
from pyzmp.registry.domain import check_node_name


class At:
    """A class of nodes as callers of one node see it: its channels are those of that node."""

    _cls: type
    _node: str

    def __init__(self, cls: type, node: str) -> None:
        vars(self).update(_cls=cls, _node=check_node_name(node))

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        found = inspect.getattr_static(self._cls, attribute, None)
        if isinstance(found, ServiceMethod):
            return found.of_node(self._node)
        if isinstance(found, Parameter):
            return found.of_node(self._node, self._cls)
        if isinstance(found, Topic):
            return found if found.full_name is not None else found.of_node(self._node, self._cls)
        known = [*methods_of(self._cls), *parameters_of(self._cls), *topics_of(self._cls)]
        raise AttributeError(f"{self._cls.__name__} declares no channel {attribute!r}; it has "
                             f"{', '.join(known) or 'none'}")

    def __setattr__(self, attribute: str, value: object) -> None:
        how = f"write ….{attribute}.set(…)" if attribute in parameters_of(self._cls) else "it has channels only"
        raise AttributeError(f"{attribute!r} of {self!r} cannot be assigned; {how}")

    def __reduce__(self) -> Any:
        return At, (self._cls, self._node)

    def __repr__(self) -> str:
        return f"<{self._cls.__name__} at {self._node!r}>"
