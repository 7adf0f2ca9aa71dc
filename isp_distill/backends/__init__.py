"""Which implementation serves a call, and the compiled libraries behind them."""
