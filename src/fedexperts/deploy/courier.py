"""What Flower starts at a site for each message: it carries the order to the process that answers,
and the reply back.

That process has the model loaded and lives as long as the site, so that this one need not import
what is heavy.
"""

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from ..post import about_in, ask, bytes_in, reply
from .orphans import end_with_parent

app = ClientApp()


@app.train()
@app.evaluate()
@app.query()
def carry(message: Message, context: Context) -> Message:
    """The reply to an order; one that is none is carried as nothing, and answered likewise."""
    end_with_parent()
    try:
        order = about_in(message), bytes_in(message)
    except ValueError:
        order = {}, b""
    return reply(ask(str(context.node_config["socket"]), *order), message)
