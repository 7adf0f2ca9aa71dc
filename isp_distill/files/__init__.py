"""Files on the disk: written whole, searched for, refused in a sentence that names them."""
