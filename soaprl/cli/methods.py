"""`soaprl methods`: the ways to find a strategy."""

from soaprl.cli.arguments import Json
from soaprl.cli.output import print_json, print_table


def methods(as_json: Json = False) -> None:
    """List the ways to find a strategy."""
    from soaprl.cli.known import known_methods

    known = known_methods().values()
    if as_json:
        fields = ("name", "description", "source", "iterative", "resumable")
        listed = [
            {
                **{field: getattr(method, field) for field in fields},
                "chains": method.chains is not None,
                "started": method.started is not None,
            }
            for method in known
        ]
        print_json({"methods": listed})
        return
    rows = [
        (method.name, "yes" if method.iterative else "no", method.description, method.source)
        for method in known
    ]
    print_table("Methods", ("name", "needs a budget", "description", "source"), rows)
