import torch


class _Add(torch.autograd.Function):
    @staticmethod
    def forward(ctx, loss, value, term, weight):
        ctx.term, ctx.weight = term, weight
        return loss + value

    @staticmethod
    def backward(ctx, g):
        ctx.term.pending = dict.fromkeys(ctx.term.params, g * ctx.weight)
        return g, None, None, None


class PenaltyTerm:
    def __init__(self, penalty, params):
        self.penalty, self.params, self.pending = penalty, dict(params), {}
        self.hooks = [
            p.register_post_accumulate_grad_hook(lambda p, n=n: self._hook(n, p))
            for n, p in self.params.items()
            if p.requires_grad
        ]

    def _hook(self, n, p):
        if n in self.pending and n in self.penalty.importances():
            w = self.pending.pop(n)
            with torch.no_grad():
                p.grad.add_(w * self.penalty.importances()[n] * (p - self.penalty.anchors()[n]))

    def __call__(self, loss, weight):
        if weight == 0 or self.penalty.is_empty:
            return loss
        self.omega = self.penalty.value(self.params)
        return _Add.apply(loss, (weight * self.omega).to(loss.dtype), self, weight)

    def remove(self):
        for h in self.hooks:
            h.remove()
