"""Training of the co-attention head: on stored frame features, or end to end with the backbone.

The data's way is the reading order:

    features      galleries -> labelled videos with their frame features in memory; the validation split
    sampler       videos -> batches of P people x K tracklets x S segments; hiding by mixing
    losses        a batch's comparison -> one number, and what each term contributed
    validation    a head on videos it has not seen -> rank-1 and mAP beside mean pooling
    loop          settings -> a trained head, epoch by epoch
"""
