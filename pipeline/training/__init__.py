"""Training of the co-attention head: on stored frame features, or end to end with the backbone.

The data's way is the reading order:

    galleries     what is labelled -> galleries to learn from
    features      galleries -> labelled videos with their frame features in memory; the validation split
    sampler       videos -> batches of P people x K tracklets x S segments; hiding by mixing
    losses        a batch's comparison -> one number, and what each term contributed
    validation    a head on videos it has not seen -> rank-1 and mAP beside mean pooling
    loop          settings -> a trained head, epoch by epoch
    run           a plan -> the same with checkpoints in a folder; distributed: on Ray; end_to_end: with the backbone
    outcome       the best epoch -> the head, and the backbone, that the other commands take
"""
