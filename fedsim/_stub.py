import math
from types import SimpleNamespace
import numpy as np, torch
from fedsim.training import train_locally, load_arrays, read_arrays
from fedsim.training.cohort import CohortResult
class Stub:
    uses_threads = False
    def __init__(self, model, ds, **kw): self.m, self.ds, self.kw = model, ds, kw
    def prepare(self, arrays, clients): pass
    def train(self, arrays, clients, *, learning_rate, rngs, corrections=None):
        outs=[];res=[]
        for i,(idx,rng) in enumerate(zip(clients,rngs)):
            load_arrays(self.m, arrays)
            x,y=self.ds.train(idx)
            c=None if corrections is None else {k:torch.from_numpy(v) for k,v in corrections[i].items()}
            res.append(train_locally(self.m, torch.from_numpy(x), torch.from_numpy(y), learning_rate=learning_rate, rng=rng, correction=c, **self.kw))
            outs.append(read_arrays(self.m))
        return CohortResult(arrays={k:np.stack([o[k] for o in outs]) for k in outs[0]}, examples=np.array([r.examples for r in res]), steps=np.array([r.steps for r in res]),
          loss_first_step=np.array([r.loss_first_step for r in res]), loss_last_step=np.array([r.loss_last_step for r in res]))
    def digest(self, start, result):
        K=len(result.steps); names=[k for k in start if start[k].dtype.kind=='f']
        with np.errstate(all='ignore'):
            d={k:result.arrays[k].astype(np.float64)-start[k] for k in names}
            norms={k:np.sqrt((v.reshape(K,-1)**2).sum(1)) for k,v in d.items()}
        zeros=sum((v.reshape(K,-1)==0).sum(1) for v in d.values())
        el=sum(start[k].size for k in names)
        fin=np.all([np.isfinite(a.reshape(K,-1)).all(1) for a in result.arrays.values()],axis=0)
        tot={}
        for k,a in result.arrays.items():
            t=np.zeros(a.shape[1:])
            for i in range(K):
                if fin[i]: t+=np.multiply(a[i],float(result.examples[i]),dtype=np.float64)
            tot[k]=t
        return SimpleNamespace(sum=tot, finite=fin, update_norm=np.sqrt(sum(v**2 for v in norms.values())), zero_fraction=zeros/el, tensor_norms=lambda p:{k:float(v[p]) for k,v in norms.items()})
def steps_of(held, *, epochs, steps, batch_size):
    size = np.where(batch_size==0, held, batch_size); per=-(-held//np.maximum(size,1))
    return np.full(len(held), steps) if steps else epochs*per
def cut_blocks(steps, *, together, size):
    return np.array_split(np.arange(len(steps)), max(1,len(steps)//(size or 4)))
