"""From training to production and back on the travel example: gate, canary, automatic return, thumbs, next round."""
