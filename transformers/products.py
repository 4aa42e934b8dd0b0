"""Products, as the shop window shows them.

product_catalogue: what is for sale in this category, or of this brand, cheapest first? A record per product,
which leaves when the product can't be bought.
"""

from typing import Any

from distributary import DerivedCollection, Record, transform

catalogue = DerivedCollection("product_catalogue", indexes=[["category", "price"], ["brand", "price"]])


@transform("products")
def products(product: dict[str, Any]) -> Record | None:
    """Give the product's entry; what is discontinued or has no price is not for sale and leaves."""
    if product.get("discontinued") or product.get("price") is None:
        return None
    shown = {name: product.get(name) for name in ("brand", "category", "price")}
    return catalogue.record(product["_id"], {"name": product.get("productName"), **shown})
