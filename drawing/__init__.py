"""How what is seen is drawn: figures of plain data, and the pages that hold them."""
