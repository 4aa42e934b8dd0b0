"""Insurance products, as they are offered.

product_catalogue: what is on offer in this line, and to whom? A record per product, which leaves when it is
sold no more; policies of it stay, since they carry its name.
"""

from typing import Any

from distributary import DerivedCollection, Record, transform

from ._values import amount

catalogue = DerivedCollection("product_catalogue", indexes=["line", "stages"])


@transform("products")
def products(product: dict[str, Any]) -> Record | None:
    """Give the product's entry, with the life-cycle stages that it is made for."""
    if product.get("withdrawn_at") is not None:
        return None
    shown = {name: product.get(name) for name in ("name", "line", "stages", "entry_age")}
    return catalogue.record(product["_id"], {**shown, "premium_from": amount(product.get("premium_from"))})
